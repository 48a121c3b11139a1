package tree

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"nbd.example/nbd/block"
)

// watched is the system's files, with what a test wants to see or to forbid. It never waits.
type watched struct {
	*system
	open  atomic.Int64 // files of blocks
	most  int64        // that may be open, or 0
	opens atomic.Int64 // how often one was opened
	syncs atomic.Int64 // files and all
	alls  atomic.Int64 // all
	each  bool         // all cannot be made stable at once
	// saw, if not nil, is told what happens to a file.
	saw func(event, name string)
}

func (w *watched) see(event, name string) {
	if w.saw != nil {
		w.saw(event, filepath.Base(name))
	}
}

type watchedFile struct {
	File
	w    *watched
	name string
}

func (w *watched) OpenFile(name string, flag int) (File, error) {
	if w.most > 0 && w.open.Load() >= w.most {
		return nil, &fs.PathError{Op: "open", Path: name, Err: syscall.EMFILE}
	}
	f, err := w.system.OpenFile(name, flag)
	if err != nil {
		return nil, err
	}
	w.open.Add(1)
	w.opens.Add(1)
	return watchedFile{f, w, name}, nil
}

func (w *watched) OpenNow(name string, flag int) File {
	f, err := w.OpenFile(name, flag)
	if err != nil {
		return nil
	}
	return f
}

func (w *watched) SyncAll() error {
	w.syncs.Add(1)
	w.alls.Add(1)
	return w.system.SyncAll()
}

func (w *watched) SyncsAll() bool { return !w.each && w.system.SyncsAll() }

func (f watchedFile) WriteAt(p []byte, off int64) (int, error) {
	f.w.see("write", f.name)
	return f.File.WriteAt(p, off)
}

func (f watchedFile) ReadNow(p []byte, off int64) bool {
	n, err := f.ReadAt(p, off)
	return err == nil && n == len(p)
}

func (f watchedFile) WriteNow(p []byte, off int64) bool {
	_, err := f.WriteAt(p, off)
	return err == nil
}

func (f watchedFile) Sync() error {
	f.w.syncs.Add(1)
	f.w.see("sync", f.name)
	return f.File.Sync()
}

func (f watchedFile) Close() error {
	f.w.open.Add(-1)
	f.w.see("close", f.name)
	return f.File.Close()
}

func openWatched(t *testing.T, c Config, w *watched) (*Tree, *block.Device) {
	t.Helper()
	if c.Path == "" {
		c.Path = filepath.Join(t.TempDir(), "tree")
	}
	w.system = newSystem(c)
	c.FS = w
	b, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	d, err := block.New(b)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
		if n := w.open.Load(); n != 0 {
			t.Errorf("%d files are open after the end", n)
		}
	})
	return b, d
}

func write(t *testing.T, d *block.Device, b int64, p ...byte) {
	t.Helper()
	if err := d.WriteAt(t.Context(), p, b*BlockSize, 0); err != nil {
		t.Fatal(err)
	}
}

// TestFilesRunOut lets the system refuse to open more files than three at a time.
func TestFilesRunOut(t *testing.T) {
	w := &watched{most: 3}
	_, d := openWatched(t, Config{Size: 1 << 20}, w)
	for i := range int64(20) {
		write(t, d, i, byte(i))
	}
	for i := range int64(20) {
		p := []byte{99}
		if err := d.ReadAt(t.Context(), p, i*BlockSize); err != nil || p[0] != byte(i) {
			t.Fatalf("block %d: %d, %v", i, p[0], err)
		}
	}
	if n := w.open.Load(); n > 3 {
		t.Errorf("%d files are open", n)
	}
}

// TestInPlace wants answers without waiting where they are possible, and refusals where not.
func TestInPlace(t *testing.T) {
	w := &watched{}
	path := filepath.Join(t.TempDir(), "tree")
	_, d := openWatched(t, Config{Path: path, Size: 8 << 20}, w)
	p := make([]byte, 2*BlockSize)
	if d.TryRead(p, 0) {
		t.Error("a folder was read without waiting")
	}
	if err := d.ReadAt(t.Context(), p, 0); err != nil {
		t.Fatal(err)
	}
	for i := range p {
		p[i] = 1
	}
	if !d.TryRead(p, 0) || slices.Max(p) != 0 {
		t.Error("blocks without files are not read in place, or not as zeroes")
	}
	if d.TryWrite([]byte("x"), 5) {
		t.Error("a file was made without waiting")
	}
	write(t, d, 0, []byte("begin")...)
	write(t, d, 1, []byte("next")...)
	if !d.TryWrite([]byte("END"), BlockSize-1) || !d.TryRead(p[:5], BlockSize-1) || string(p[:5]) != "ENDxt" {
		t.Errorf("across a border: %q", p[:5])
	}
	if got, err := os.ReadFile(filepath.Join(path, "TREE0000", "FILE0000")); err != nil || string(got[:6]) != "begin\x00" || got[BlockSize-1] != 'E' || len(got) != BlockSize {
		t.Errorf("the file has %d bytes, %q…, %v", len(got), got[:min(len(got), 6)], err)
	}
}

// TestInPlaceLong leaves long writes to others, and no shorter ones.
func TestInPlaceLong(t *testing.T) {
	_, d := openWatched(t, Config{Size: 1 << 20}, &watched{})
	p := make([]byte, longWrite)
	if err := d.WriteAt(t.Context(), p, 0, 0); err != nil {
		t.Fatal(err)
	}
	if d.TryWrite(p, 0) || !d.TryWrite(p[1:], 0) {
		t.Errorf("a write of %d bytes is made in place, or one byte less is not", len(p))
	}
}

// TestBlockSet compares a set with a map.
func TestBlockSet(t *testing.T) {
	var s blockSet
	want := map[int64]bool{}
	for _, b := range []int64{0, 1, 63, 64, fan - 1, fan, fan + 1, 5 * fan, 1 << 40, 1, fan} {
		s.add(b)
		want[b] = true
	}
	got := 0
	for b := range s.all {
		if got++; !want[b] {
			t.Errorf("block %d is in the set", b)
		}
	}
	if got != len(want) || s.count != got {
		t.Errorf("%d blocks, and a count of %d, want %d", got, s.count, len(want))
	}
	s.remove(1)
	s.remove(2)
	s.remove(9 * fan)
	if s.count != got-1 || !s.add(1) || s.add(1) {
		t.Errorf("a count of %d after one of %d was removed", s.count, got)
	}
	for range s.all { // ends when it is told to
		break
	}
}

// TestInPlaceSync has a tree in which each write is stable when it is answered.
func TestInPlaceSync(t *testing.T) {
	_, d := openWatched(t, Config{Size: 1 << 20, Sync: true}, &watched{})
	write(t, d, 0, 'a')
	if d.TryWrite([]byte("b"), 0) {
		t.Error("a write that must be stable was made without waiting")
	}
}

// TestInPlaceFlush flushes after each of several writes to the same block.
func TestInPlaceFlush(t *testing.T) {
	w := &watched{}
	_, d := openWatched(t, Config{Size: 1 << 20}, w)
	write(t, d, 0, 'a')
	for i := range 3 {
		if i > 0 && !d.TryWrite([]byte("b"), 0) {
			t.Fatal("not written in place")
		}
		before := w.syncs.Load()
		if err := d.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		if w.syncs.Load() == before {
			t.Errorf("flush %d made nothing stable", i)
		}
	}
}

// TestReplacement reads more files than can be open, from the first to the last, again and
// again. Some of them must stay open from one time to the next.
func TestReplacement(t *testing.T) {
	const limit, files, rounds = 20, 40, 50
	w := &watched{}
	tree, d := openWatched(t, Config{Size: 1 << 20, MaxOpen: limit}, w)
	for b := range int64(files) {
		write(t, d, b, byte(b))
	}
	if n := w.open.Load(); n > limit {
		t.Errorf("%d files are open, more than %d", n, limit)
	}
	before := w.opens.Load()
	p := make([]byte, BlockSize)
	for range rounds {
		for b := range int64(files) {
			if !d.TryRead(p, b*BlockSize) || p[0] != byte(b) {
				t.Fatalf("block %d: %d", b, p[0])
			}
		}
	}
	if n := w.opens.Load() - before; n > files*rounds*9/10 {
		t.Errorf("%d of %d reads opened a file", n, files*rounds)
	}
	for b := range int64(files) { // parts of blocks
		for range 2 {
			if !d.TryRead(p[:1], b*BlockSize) {
				t.Fatal("not read in place")
			}
			if tree.cache.shard(b).files[b] == nil {
				t.Errorf("block %d was closed after a part of it was read", b)
			}
		}
	}
	if n := w.open.Load(); n > limit {
		t.Errorf("%d files are open, more than %d", n, limit)
	}
}

// TestNoFile has a block whose file somebody has taken away.
func TestNoFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "tree")
	_, d := openWatched(t, Config{Path: path, Size: 1 << 20, MaxOpen: 1}, &watched{})
	write(t, d, 0, 'a')
	write(t, d, 1, 'b')
	if err := os.Remove(filepath.Join(path, "FILE0000")); err != nil {
		t.Fatal(err)
	}
	p := make([]byte, 1)
	if d.TryRead(p, 0) {
		t.Error("it was read in place")
	}
	if err := d.ReadAt(t.Context(), p, 0); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "FILE0000") {
		t.Errorf("read: %v", err)
	}
}
