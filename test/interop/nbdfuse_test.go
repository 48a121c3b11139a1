package interop

import (
	"os"
	"path/filepath"
	"testing"

	"nbd.example/nbd/internal/testgate"
	"nbd.example/nbd/test/harness"
)

// TestNbdfuse mounts an export as a file, reads it, writes it, and looks at the
// image afterwards.
func TestNbdfuse(t *testing.T) {
	t.Parallel()
	testgate.Requires(t, testgate.Linux(), testgate.Program("nbdfuse"), testgate.Fuse())
	d := serveDisk(t, harness.Sparse(20, 16*mib))
	dir := filepath.Join(d.Dir, "mnt")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "disk")
	p := harness.Spawn(t, nil, "nbdfuse", file, d.URI("disk"))
	mounted := true
	unmount := func() {
		if mounted {
			harness.Run(t, "fusermount3", "-u", dir)
			mounted = false
		}
	}
	t.Cleanup(unmount)
	harness.AwaitFile(t, p, file)

	harness.Same(t, file, d.data)
	patch := harness.Random(21, 100_000)
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(patch, 3*mib-50_001); err != nil {
		t.Error(err)
	}
	if err := f.Sync(); err != nil {
		t.Error(err)
	}
	if err := f.Close(); err != nil {
		t.Error(err)
	}
	unmount()
	if err := p.Wait(); err != nil {
		t.Errorf("nbdfuse: %v", err)
	}
	copy(d.data[3*mib-50_001:], patch)
	harness.Same(t, d.image, d.data)
}
