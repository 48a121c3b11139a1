package tree

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"nbd.example/nbd/block"
)

// TestMemory answers in place on a file system that lives in memory, also when the file of a
// block must be opened, and takes no memory for it when it is open.
func TestMemory(t *testing.T) {
	dir, err := os.MkdirTemp("/dev/shm", "tree")
	if err != nil {
		t.Skipf("needs a tmpfs at /dev/shm: %v", err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	var sys unix.Statfs_t
	if err := unix.Statfs(dir, &sys); err != nil || uint32(sys.Type) != unix.TMPFS_MAGIC {
		t.Skip("needs a tmpfs at /dev/shm")
	}
	b, err := Open(Config{Path: filepath.Join(dir, "tree"), Size: 8 << 20, MaxOpen: 1})
	if err != nil {
		t.Fatal(err)
	}
	d, err := block.New(b)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	write(t, d, 0, 'a')
	write(t, d, 1, 'b')
	p := make([]byte, BlockSize)
	for _, x := range []string{"a", "b"} {
		at := int64(x[0]-'a') * BlockSize
		if !d.TryRead(p, at) || p[0] != x[0] || !d.TryWrite(p, at) {
			t.Errorf("%s was not read and written in place: %q", x, p[0])
		}
		n := testing.AllocsPerRun(100, func() {
			if !d.TryRead(p[:100], at) || !d.TryWrite(p[:100], at) {
				t.Error("not in place")
			}
		})
		if n > 0 {
			t.Errorf("%v allocations to read and write a file that is open", n)
		}
	}
	if err := os.Truncate(filepath.Join(dir, "tree", "TREE0000", "FILE0001"), 1); err != nil {
		t.Fatal(err)
	}
	p[1] = 'x'
	if !d.TryRead(p, BlockSize) || p[0] != 'b' || p[1] != 0 {
		t.Errorf("a short file reads as %q…", p[:2])
	}
}

// TestUnknown leaves to others what may wait, until a file has told that it can be seen.
func TestUnknown(t *testing.T) {
	s := newSystem(Config{Path: t.TempDir()})
	if err := s.Open(s.config.Path); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	name := filepath.Join(s.config.Path, "FILE0000")
	f, err := s.OpenFile(name, os.O_RDWR|os.O_CREATE)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if how := s.now.read.Load(); how == nowUnknown {
		t.Error("nothing is known after a file was opened")
	}
	p := []byte("x")
	for _, how := range []int32{nowUnknown, nowNever} {
		s.now.read.Store(how)
		if s.OpenNow(name, os.O_RDWR) != nil || f.ReadNow(p, 0) || f.WriteNow(p, 0) {
			t.Errorf("in place, while it is not known whether that waits (%d)", how)
		}
	}
}
