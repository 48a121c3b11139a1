package crash_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"nbd.example/nbd/backend/file"
	"nbd.example/nbd/block"
	"nbd.example/nbd/block/blocktest"
	"nbd.example/nbd/internal/testgate"
	"nbd.example/nbd/server"
	"nbd.example/nbd/test/crash"
	"nbd.example/nbd/test/harness"
)

// power is a disk of a machine that can lose its power, made into a file of the
// system: nbdfuse passes what the kernel does to the file on to the disk, and a sync of
// the file as a flush.
type power struct {
	w    *crash.World
	rnd  *rand.Rand
	size int64
	loop bool // a block device is made of the file, with a page cache that does not write by itself

	path string // what is to be opened
	stop func()
}

// TestFile cuts the power below files and disks: what a flush or FUA has promised must
// have reached what is below.
func TestFile(t *testing.T) {
	testgate.Requires(t, testgate.Linux(), testgate.Root(), testgate.Program("nbdfuse", "losetup"), testgate.Fuse(), testgate.Loop())
	for _, x := range []struct {
		name string
		loop bool
		c    file.Config
	}{
		{"File", false, file.Config{}},
		{"Disk", true, file.Config{}},
		{"DiskDirect", true, file.Config{Direct: true}},
	} {
		t.Run(x.name, func(t *testing.T) {
			p := &power{rnd: rand.New(rand.NewPCG(rand.Uint64(), 0)), loop: x.loop, stop: func() {}}
			open := func(t testing.TB) (block.Backend, error) {
				p.stop() // with what memory knew of the file
				p.mount(t)
				c := x.c
				c.Path = p.path
				return file.Open(c)
			}
			blocktest.PowerCut(t, blocktest.Target{
				Open: func(t testing.TB, size int64) (block.Backend, error) {
					p.w, p.size = crash.New(), size
					return open(t)
				},
				Reopen:   open,
				Cut:      func(testing.TB) { p.w = p.w.Now(p.rnd) }, // what is still written goes to the machine of before
				SizeUnit: 512,
			})
		})
	}
}

// mount makes p.path of the disk of p.w.
func (p *power) mount(t testing.TB) {
	t.Helper()
	dir := t.TempDir()
	l, err := net.Listen("unix", filepath.Join(dir, "sock"))
	if err != nil {
		t.Fatal(err)
	}
	disk := p.w.Disk("d", p.size)
	s, err := server.New(server.Config{Exports: []*server.Export{{
		Open: func(context.Context, server.Client) (*block.Device, error) { return block.New(disk) },
	}}})
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	mnt := filepath.Join(dir, "mnt")
	if err := os.Mkdir(mnt, 0o700); err != nil {
		t.Fatal(err)
	}
	p.path = filepath.Join(mnt, "disk")
	fuse := harness.Spawn(t, nil, "nbdfuse", p.path, "nbd+unix:///?socket="+l.Addr().String())
	harness.AwaitFile(t, fuse, p.path)
	detach := func() {}
	if p.loop {
		p.path = strings.TrimSpace(run(t, "losetup", "--find", "--show", p.path))
		detach = func() { run(t, "losetup", "--detach", p.path) }
	}
	p.stop = func() {
		p.stop = func() {}
		detach()
		run(t, "fusermount3", "-u", "-z", mnt) // a loop device lets go of it a moment later
		if err := fuse.Wait(); err != nil {
			t.Errorf("nbdfuse: %v", err)
		}
		if err := errors.Join(s.Shutdown(context.Background()), <-served); err != nil {
			t.Error(err)
		}
	}
	t.Cleanup(func() { p.stop() })
}

func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(testgate.Find(name), args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return string(out)
}
