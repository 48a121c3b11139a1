package interop

import (
	"path/filepath"
	"testing"

	"nbd.example/nbd/internal/testgate"
	"nbd.example/nbd/test/harness"
)

// copyOptions are the ways to run nbdcopy that differ on the wire.
var copyOptions = []struct {
	name string
	args []string
}{
	{"default", nil},
	{"one connection", []string{"--connections=1"}},
	{"one request", []string{"--connections=1", "--requests=1"}},
	{"synchronous", []string{"--synchronous"}},
	{"many", []string{"--connections=8", "--requests=128"}},
	{"small requests", []string{"--request-size=4096"}},
	{"large requests", []string{"--request-size=33554432"}},
	{"no extents", []string{"--no-extents"}},
	{"allocated", []string{"--allocated"}},
	{"all data", []string{"-S", "0"}},
	{"flush", []string{"--flush"}},
}

func TestNbdcopyDown(t *testing.T) {
	t.Parallel()
	testgate.Requires(t, testgate.Program("nbdcopy"))
	d := serveDisk(t, harness.Sparse(10, 48*mib))
	for _, c := range copyOptions {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			to := filepath.Join(harness.Dir(t), "copy")
			harness.Run(t, "nbdcopy", append(c.args, d.URI("disk"), to)...)
			harness.Same(t, to, d.data)
		})
	}
}

func TestNbdcopyUp(t *testing.T) {
	t.Parallel()
	testgate.Requires(t, testgate.Program("nbdcopy"))
	want := harness.Sparse(11, 48*mib)
	for _, c := range copyOptions {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			// What is there must be overwritten also where the source has a hole.
			d := serveDisk(t, harness.Random(12, len(want)))
			from := harness.Image(t, d.Dir, "from", want)
			harness.Run(t, "nbdcopy", append(c.args, from, d.URI("disk"))...)
			d.Stop()
			harness.Same(t, d.image, want)
		})
	}
}

func TestNbdcopyBetweenServers(t *testing.T) {
	t.Parallel()
	testgate.Requires(t, testgate.Program("nbdcopy"))
	from := serveDisk(t, harness.Sparse(13, 32*mib))
	to := serveDisk(t, make([]byte, 32*mib))
	harness.Run(t, "nbdcopy", "--destination-is-zero", from.URI("disk"), to.URI("disk"))
	to.Stop()
	harness.Same(t, to.image, from.data)
}

// TestNbdcopyMemory copies to memory, from there to another memory disk of the
// same server, and back.
func TestNbdcopyMemory(t *testing.T) {
	t.Parallel()
	testgate.Requires(t, testgate.Program("nbdcopy"))
	s := harness.Start(t, harness.Config{Exports: section("a", "memory:24M") + section("b", "memory:24M")})
	want := harness.Sparse(14, 24*mib)
	from, to := harness.Image(t, s.Dir, "from", want), filepath.Join(s.Dir, "to")
	harness.Run(t, "nbdcopy", from, s.URI("a"))
	harness.Run(t, "nbdcopy", s.URI("a"), s.URI("b"))
	harness.Run(t, "nbdcopy", s.URI("b"), to)
	harness.Same(t, to, want)
}
