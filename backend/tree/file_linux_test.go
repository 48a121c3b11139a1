package tree

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"nbd.example/nbd/block"
	"nbd.example/nbd/internal/testgate"
)

// TestMemory answers in place on a file system that lives in memory, also when the file of a
// block must be opened, and takes no memory for it when it is open.
func TestMemory(t *testing.T) {
	dir := testgate.MemoryDir(t)
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
	if !d.TryWrite([]byte("middle"), BlockSize+3000) || !d.TryRead(p[:6], BlockSize+3000) || string(p[:6]) != "middle" {
		t.Errorf("in the middle of a block: %q", p[:6])
	}
	if !d.TryRead(p, BlockSize) || p[0] != 'b' || p[1] != 0 {
		t.Errorf("its begin was changed: %q", p[:2])
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

// TestElsewhere has a tree in memory of which one folder lies on another file system, behind a
// link. What is there may wait, and is made stable with the rest.
func TestElsewhere(t *testing.T) {
	tree, s, d := openLinked(t, testgate.MemoryDir(t), testgate.DiskDir(t))
	p := make([]byte, BlockSize)
	p[0] = 'w'
	for _, b := range []int64{0, fan} {
		write(t, d, b, p...)
		here := b == 0
		h := tree.cache.get(b)
		if got := h.File.(*sysFile).now() == nowAlways; got != here {
			t.Errorf("block %d is believed never to wait: %t", b, got)
		}
		h.release()
		if f := s.OpenNow(tree.file(b), os.O_RDWR); (f != nil) != here {
			t.Errorf("block %d was opened in place: %t", b, f != nil)
		} else if here {
			f.Close()
		}
		if d.TryRead(p, b*BlockSize) != here || d.TryWrite(p, b*BlockSize) != here {
			t.Errorf("block %d was read or written in place: %t", b, !here)
		}
		if err := d.ReadAt(t.Context(), p, b*BlockSize); err != nil || p[0] != 'w' {
			t.Errorf("block %d: %q, %v", b, p[0], err)
		}
	}
	if err := s.SyncAll(); err != nil {
		t.Error(err)
	}
	if len(s.mounts.known) != 1 {
		t.Fatalf("%d more file systems are known", len(s.mounts.known))
	}
	for _, f := range s.mounts.known {
		f.Close()
	}
	if s.SyncAll() == nil {
		t.Error("the other file system was not made stable")
	}
	clear(s.mounts.known)
}

// TestLinkToMemory has a tree on a disk of which one folder lies in memory.
func TestLinkToMemory(t *testing.T) {
	_, _, d := openLinked(t, testgate.DiskDir(t), testgate.MemoryDir(t))
	p := make([]byte, 1)
	for _, b := range []int64{0, fan} {
		write(t, d, b, 'x')
		if err := d.ReadAt(t.Context(), p, b*BlockSize); err != nil || p[0] != 'x' {
			t.Errorf("block %d: %q, %v", b, p[0], err)
		}
	}
	if err := d.Flush(t.Context()); err != nil {
		t.Error(err)
	}
}

// openLinked opens a tree in dir, whose second folder leads to another.
func openLinked(t *testing.T, dir, other string) (*Tree, *system, *block.Device) {
	t.Helper()
	var a, b unix.Stat_t
	if err := errors.Join(unix.Stat(dir, &a), unix.Stat(other, &b)); err != nil {
		t.Fatal(err)
	}
	if a.Dev == b.Dev {
		t.Fatal("both folders are on one file system")
	}
	if err := os.Symlink(other, filepath.Join(dir, "TREE0001")); err != nil {
		t.Fatal(err)
	}
	tree, err := Open(Config{Path: dir, Size: 8 << 20})
	if err != nil {
		t.Fatal(err)
	}
	d, err := block.New(tree)
	if err != nil {
		t.Fatal(err)
	}
	s := tree.fs.(*system)
	t.Cleanup(func() {
		if err := d.Close(); err != nil || s.mounts.known != nil {
			t.Errorf("%d file systems are in use after the end; %v", len(s.mounts.known), err)
		}
	})
	return tree, s, d
}

// TestLease has a file that somebody else has a lease on, which takes time to end.
func TestLease(t *testing.T) {
	s := newSystem(Config{Path: testgate.MemoryDir(t)})
	if err := s.Open(s.config.Path); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	name := filepath.Join(s.config.Path, "FILE0000")
	holder, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer holder.Close()
	f := s.OpenNow(name, os.O_RDWR)
	if f == nil {
		t.Fatal("not opened in place")
	}
	f.Close()
	if _, err := unix.FcntlInt(holder.Fd(), unix.F_SETLEASE, unix.F_WRLCK); err != nil {
		t.Fatal(err)
	}
	if s.OpenNow(name, os.O_RDWR) != nil {
		t.Error("opened without waiting")
	}
}
