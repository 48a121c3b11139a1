package wait_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"nbd.example/nbd/backend/file"
	"nbd.example/nbd/backend/memory"
	"nbd.example/nbd/block"
	"nbd.example/nbd/block/blocktest"
	"nbd.example/nbd/internal/testgate"
	"nbd.example/nbd/layer/wait"
)

// device makes a device of b, which is closed with the test.
func device(t testing.TB, b block.Backend) *block.Device {
	t.Helper()
	d, err := block.New(b)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// over puts the layer over a device.
func over(t testing.TB, next *block.Device, c wait.Config) (*wait.Wait, *block.Device) {
	t.Helper()
	b, err := wait.Layer(c)(next)
	if err != nil {
		t.Fatal(err)
	}
	return b.(*wait.Wait), device(t, b)
}

// late makes a device over a file that may not exist yet.
func late(t testing.TB, path string, size int64, c wait.Config) (*wait.Wait, *block.Device) {
	t.Helper()
	w, err := wait.New(t.Context(), c, size, func(context.Context) (*block.Device, error) {
		f, err := file.Open(file.Config{Path: path})
		if err != nil {
			return nil, err
		}
		return block.New(f)
	})
	if err != nil {
		t.Fatal(err)
	}
	return w, device(t, w)
}

func write(t testing.TB, d *block.Device, text string, off int64) {
	t.Helper()
	if err := d.WriteAt(t.Context(), []byte(text), off, 0); err != nil {
		t.Fatal(err)
	}
}

func want(t testing.TB, d *block.Device, text string, off int64) {
	t.Helper()
	p := make([]byte, len(text))
	if err := d.ReadAt(t.Context(), p, off); err != nil || string(p) != text {
		t.Errorf("at %d there is %q, %v; want %q", off, p, err, text)
	}
}

// sectors returns n sectors of text.
func sectors(text string, n int) string { return strings.Repeat(text, 512/len(text)*n) }

// TestLate collects while there is no base, and merges when there is one: how an
// image moves to another server while it is in use.
func TestLate(t *testing.T) {
	dir := t.TempDir()
	path, diff := filepath.Join(dir, "image"), filepath.Join(dir, "diff")
	w, d := late(t, path, 10_000, wait.Config{Diff: diff, Name: "disk"})
	write(t, d, sectors("new!", 2), 1024)
	write(t, d, "er", 1026) // a part of what is there
	want(t, d, "neer", 1024)
	for what, err := range map[string]error{
		"read what was never written":  d.ReadAt(t.Context(), make([]byte, 1), 1023),
		"write a part of a sector":     d.WriteAt(t.Context(), []byte("x"), 5000, 0),
		"merge":                        w.Merge(t.Context()),
		"merge once more, as the user": w.Merge(t.Context()),
	} {
		if !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if s := w.Status(); s.State != "collecting" || s.Waiting != 1024 || s.Name != "disk" || !errors.Is(s.Err, fs.ErrNotExist) {
		t.Errorf("%+v", s)
	}
	if err := os.WriteFile(path, bytes.Repeat([]byte("o"), 9999), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := w.Merge(t.Context()); err == nil || !strings.Contains(err.Error(), "fewer than the 10000") {
		t.Errorf("a base that is too small: %v", err)
	}
	old := bytes.Repeat([]byte("old?"), 2501)
	if err := os.WriteFile(path, old, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := w.Merge(t.Context()); err != nil {
		t.Fatal(err)
	}
	if s := w.Status(); s.State != "merged" || s.Waiting != 0 || s.Err != nil {
		t.Errorf("%+v", s)
	}
	if err := w.Merge(t.Context()); err != nil {
		t.Errorf("merging what has merged: %v", err)
	}
	if _, err := os.Stat(diff); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the diff after the merge: %v", err)
	}
	write(t, d, "x", 5000)
	copy(old[1024:], "neer"+sectors("new!", 2)[4:])
	old[5000] = 'x'
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, old) {
		t.Errorf("the image is something else, %v", err)
	}
}

// TestNewFails passes other errors of the base on.
func TestNewFails(t *testing.T) {
	bad := errors.New("no such cluster")
	c := wait.Config{Diff: newDiff(t)}
	_, err := wait.New(t.Context(), c, 100, func(context.Context) (*block.Device, error) { return nil, bad })
	if !errors.Is(err, bad) {
		t.Errorf("%v", err)
	}
	disk := blocktest.NewDisk(t, blocktest.FullCaps(99))
	_, err = wait.New(t.Context(), c, 100, func(context.Context) (*block.Device, error) { return block.New(disk.Open()) })
	if err == nil || disk.Live() != 0 {
		t.Errorf("a base that is too small: %v, %d left open", err, disk.Live())
	}
	c.Diff = filepath.Join(t.TempDir(), "none", "diff")
	_, err = wait.New(t.Context(), c, 99, func(context.Context) (*block.Device, error) { return block.New(disk.Open()) })
	if !errors.Is(err, fs.ErrNotExist) || disk.Live() != 0 {
		t.Errorf("no folder for the diff: %v, %d left open", err, disk.Live())
	}
}

// TestGoesOn closes a device and opens its diff again: everything is there, and the
// base is as it was.
func TestGoesOn(t *testing.T) {
	disk, diff := blocktest.NewDisk(t, blocktest.FullCaps(100<<20)), newDiff(t)
	_, d := over(t, device(t, disk.Open()), wait.Config{Diff: diff})
	name := d.Caps().Instance
	write(t, d, sectors("far away", 1), 90<<20)
	write(t, d, "unaligned", 50<<20+100)
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if bytes.Count(disk.Contents(), []byte{0}) != 100<<20 {
		t.Error("the base was changed")
	}
	var group wait.Group
	_, d = over(t, device(t, disk.Open()), wait.Config{Diff: diff, Group: &group})
	if got := d.Caps().Instance; got != name {
		t.Errorf("the contents are called %s, and were %s", got, name)
	}
	want(t, d, sectors("far away", 1), 90<<20)
	want(t, d, "\x00unaligned\x00", 50<<20+99)
	if s := group.Status(); len(s) != 1 || s[0].Waiting != 1024 || s[0].Interrupted {
		t.Errorf("%+v", s)
	}
	if err := group.Merge(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := disk.Contents(); string(got[90<<20:][:8]) != "far away" || string(got[50<<20+100:][:9]) != "unaligned" {
		t.Error("the base has not what was written")
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	if s := group.Status(); len(s) != 0 {
		t.Errorf("a closed device is still a member: %+v", s)
	}
	_, d = over(t, device(t, disk.Open()), wait.Config{Diff: diff})
	if got := d.Caps().Instance; got != name {
		t.Errorf("after the merge the contents are called %s, and were %s", got, name)
	}
}

// TestInterrupted lets merges fail, and ends them: they go on where they were.
func TestInterrupted(t *testing.T) {
	disk, diff := blocktest.NewDisk(t, blocktest.FullCaps(80<<20)), newDiff(t)
	w, d := over(t, device(t, disk.Open()), wait.Config{Diff: diff})
	for i := range int64(5) { // more than one batch: each has 8 MiB or a bit more
		write(t, d, strings.Repeat(fmt.Sprint(i), 9<<20), i*16<<20)
	}
	full := errors.New("the disk is full")
	fail := true
	disk.Hook = func(c blocktest.Call) error {
		if fail && c.Method == "WriteAt" && c.Off >= 32<<20 {
			return full
		}
		return nil
	}
	if err := w.Merge(t.Context()); !errors.Is(err, full) {
		t.Errorf("%v, want that the disk is full", err)
	}
	if s := w.Status(); s.State != "merging" || !errors.Is(s.Err, full) || s.Waiting != 3*9<<20 {
		t.Errorf("%+v; want three of five waiting", s)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := w.Merge(ended); !errors.Is(err, context.Canceled) {
		t.Errorf("with a context that has ended: %v", err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if err := w.Merge(t.Context()); err == nil {
		t.Error("a closed device was merged")
	}
	w, d = over(t, device(t, disk.Open()), wait.Config{Diff: diff})
	if s := w.Status(); s.State != "collecting" || !s.Interrupted || s.Waiting != 3*9<<20 {
		t.Errorf("opened again: %+v", s)
	}
	for i := range int64(5) {
		want(t, d, strings.Repeat(fmt.Sprint(i), 100), i*16<<20)
	}
	write(t, d, "later", 100)
	if got := disk.Contents(); got[100] != '0' {
		t.Error("the base was changed while the device collects again")
	}
	fail = false
	if err := w.Merge(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := disk.Contents(); string(got[99:105]) != "0later" || got[64<<20] != '4' {
		t.Error("the base has not what was written")
	}
}

// TestMergePanics: a panic in the base ends a merge, and neither the program nor what is
// written meanwhile; the next merge goes on.
func TestMergePanics(t *testing.T) {
	disk := blocktest.NewDisk(t, blocktest.FullCaps(1<<20))
	w, d := over(t, device(t, disk.Open()), wait.Config{Diff: newDiff(t)})
	write(t, d, sectors("a", 1), 0)
	bad := true
	disk.Hook = func(c blocktest.Call) error {
		if bad && c.Method == "WriteAt" {
			panic("no medium")
		}
		return nil
	}
	if err := w.Merge(t.Context()); err == nil || !strings.Contains(err.Error(), "no medium") {
		t.Errorf("%v, want the panic", err)
	}
	if s := w.Status(); s.State != "merging" || s.Err == nil {
		t.Errorf("%+v", s)
	}
	bad = false
	write(t, d, "b", 0)
	if err := w.Merge(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := disk.Contents(); string(got[:3]) != "baa" {
		t.Errorf("the base has %q", got[:3])
	}
}

// TestMergeZeroes wants zeroes as zeroes, not as written bytes, in the base.
func TestMergeZeroes(t *testing.T) {
	disk := blocktest.NewDisk(t, blocktest.FullCaps(10<<20))
	disk.Load(bytes.Repeat([]byte("x"), 10<<20), 0)
	w, d := over(t, device(t, disk.Open()), wait.Config{Diff: newDiff(t)})
	if err := d.WriteZeroes(t.Context(), 1<<20+7, 8<<20, 0); err != nil {
		t.Fatal(err)
	}
	disk.Hook = func(c blocktest.Call) error {
		if c.Method == "WriteAt" && c.N > 64<<10 {
			return fmt.Errorf("%v", c)
		}
		return nil
	}
	if err := w.Merge(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := disk.Contents(); bytes.Count(got, []byte{0}) != 8<<20 || got[1<<20+7] != 0 || got[9<<20+6] != 0 {
		t.Errorf("%d zeroes", bytes.Count(got, []byte{0}))
	}
}

// TestReadOnlyBase cannot be merged, and says so; it can be read and written.
func TestReadOnlyBase(t *testing.T) {
	disk := blocktest.NewDisk(t, blocktest.FullCaps(10_000))
	w, d := over(t, device(t, disk.OpenReadOnly()), wait.Config{Diff: newDiff(t)})
	write(t, d, "x", 5)
	if err := w.Merge(t.Context()); !errors.Is(err, block.ErrReadOnly) {
		t.Errorf("%v", err)
	}
	want(t, d, "\x00x", 4)
}

// TestInUse refuses a diff that another device has.
func TestInUse(t *testing.T) {
	testgate.Requires(t, testgate.Linux())
	c := wait.Config{Diff: newDiff(t)}
	disk := blocktest.NewDisk(t, blocktest.FullCaps(10_000))
	over(t, device(t, disk.Open()), c)
	if _, err := wait.Layer(c)(device(t, disk.Open())); !errors.Is(err, syscall.EBUSY) || !strings.Contains(err.Error(), "in use") {
		t.Errorf("%v", err)
	}
}

// TestInUseByGroup: the devices of a group do not need locks of the system for
// that, which not all have.
func TestInUseByGroup(t *testing.T) {
	c := wait.Config{Diff: newDiff(t), Storage: &storage{}, Group: &wait.Group{}}
	disk := blocktest.NewDisk(t, blocktest.FullCaps(10_000))
	_, d := over(t, device(t, disk.Open()), c)
	other := c
	other.Diff, other.Storage = filepath.Join(filepath.Dir(c.Diff), ".", "x", "..", filepath.Base(c.Diff)), &storage{}
	if _, err := wait.Layer(other)(device(t, disk.Open())); !errors.Is(err, syscall.EBUSY) || !strings.Contains(err.Error(), filepath.Base(c.Diff)) {
		t.Errorf("while it is open: %v", err)
	}
	if n := len(c.Group.Status()); n != 1 {
		t.Errorf("the group has %d members", n)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	bad := c
	bad.Storage = &storage{p: []byte("my thesis")}
	if _, err := wait.Layer(bad)(device(t, disk.Open())); err == nil {
		t.Error("a wrong diff was taken")
	}
	over(t, device(t, disk.Open()), c) // what failed has let it go
}

// TestWrongDiff wants other files left alone.
func TestWrongDiff(t *testing.T) {
	disk := blocktest.NewDisk(t, blocktest.FullCaps(10_000))
	next := device(t, disk.Open())
	good := newDiff(t)
	_, d := over(t, next, wait.Config{Diff: good})
	if err := d.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(good)
	if err != nil {
		t.Fatal(err)
	}
	change := func(at int, with string) []byte {
		p := bytes.Clone(text)
		copy(p[at:], with)
		return p
	}
	for what, x := range map[string]struct {
		file []byte
		want string
	}{
		"a text":         {[]byte("my thesis"), "no diff"},
		"zeroes":         {make([]byte, 5000), "no diff"},
		"a flipped bit":  {change(20, "\x80"), "checksum"},
		"cut off":        {text[:len(text)-1], "fewer than"},
		"senseless bits": {change(4096+2, "\x08"), "past the end"},
	} {
		path := newDiff(t)
		if err := os.WriteFile(path, x.file, 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := wait.Layer(wait.Config{Diff: path})(next)
		if err == nil || !strings.Contains(err.Error(), x.want) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: %v; want something with %q", what, err, x.want)
		}
		if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, x.file) {
			t.Errorf("%s: the file was changed, %v", what, err)
		}
	}
	other := device(t, blocktest.NewDisk(t, blocktest.FullCaps(10_001)).Open())
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := wait.Layer(wait.Config{Diff: good})(other); err == nil || !strings.Contains(err.Error(), "made for a device of 10000 bytes") {
		t.Errorf("a device of another size: %v", err)
	}
	if _, err := wait.Layer(wait.Config{Diff: os.DevNull})(other); err == nil || !strings.Contains(err.Error(), "no regular file") {
		t.Errorf("a device as a diff: %v", err)
	}
	if _, err := wait.Layer(wait.Config{})(other); err == nil || !strings.Contains(err.Error(), "no path") {
		t.Errorf("no path: %v", err)
	}
}

// storage keeps a diff in memory, without holes.
type storage struct {
	mu   sync.Mutex
	p    []byte
	fail error // of Sync
	full int64 // WriteAt fails up to this offset, in bytes, behind the header
	bad  int64 // WriteAt fails there

	syncing func()                    // if not nil, called by Sync
	writing func(p []byte, off int64) // if not nil, called by WriteAt
}

func (s *storage) ReadAt(p []byte, off int64) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := copy(p, s.p[min(off, int64(len(s.p))):])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

func (s *storage) WriteAt(p []byte, off int64) (int, error) {
	if s.writing != nil {
		s.writing(p, off)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if off >= 4096 && (off < s.full || off == s.bad) {
		return 0, syscall.ENOSPC
	}
	return copy(s.p[off:], p), nil
}

func (s *storage) Size() (int64, error) { return int64(len(s.p)), nil }

func (s *storage) Truncate(size int64) error {
	s.p = append(s.p[:min(size, int64(len(s.p)))], make([]byte, max(0, size-int64(len(s.p))))...)
	return nil
}

func (s *storage) Punch(int64, int64) error { return errors.ErrUnsupported }
func (s *storage) Close() error             { return nil }
func (s *storage) Remove() error            { return nil }

func (s *storage) Sync() error {
	if s.syncing != nil {
		s.syncing()
	}
	return s.fail
}

// TestConformanceWithoutHoles is for file systems that have none.
func TestConformanceWithoutHoles(t *testing.T) {
	var disk *blocktest.Disk
	var s *storage
	again := func(testing.TB) (block.Backend, error) {
		next, err := block.New(disk.Open())
		if err != nil {
			return nil, err
		}
		return wait.Layer(wait.Config{Storage: s})(next)
	}
	blocktest.Run(t, blocktest.Target{
		Open: func(t testing.TB, size int64) (block.Backend, error) {
			disk, s = blocktest.NewDisk(t, blocktest.FullCaps(size)), &storage{}
			return again(t)
		},
		Reopen: again,
		Steps:  400,
	})
}

// TestDiffFails wants a diff that could not be made stable never to be merged, nor
// believed.
func TestDiffFails(t *testing.T) {
	bad := errors.New("no medium")
	s := &storage{}
	disk := blocktest.NewDisk(t, blocktest.FullCaps(10_000))
	w, d := over(t, device(t, disk.Open()), wait.Config{Storage: s})
	write(t, d, "x", 5)
	s.fail = bad
	if err := d.Flush(t.Context()); !errors.Is(err, bad) {
		t.Errorf("flush: %v", err)
	}
	s.fail = nil
	if err := w.Merge(t.Context()); !errors.Is(err, bad) {
		t.Errorf("merge after a failed flush: %v", err)
	}
	if got := disk.Contents(); got[5] != 0 {
		t.Error("the base was changed")
	}
}

// TestBitmapFull wants a full disk to be no more than a pause: what was written
// before is kept once there is room.
func TestBitmapFull(t *testing.T) {
	for what, rest := range map[string]func(testing.TB, *wait.Wait, *block.Device){
		"flush": func(t testing.TB, w *wait.Wait, _ *block.Device) {
			if err := w.Flush(t.Context()); err != nil {
				t.Errorf("flush when there is room: %v", err)
			}
		},
		"close": func(t testing.TB, _ *wait.Wait, d *block.Device) {
			if err := d.Close(); err != nil {
				t.Errorf("close when there is room: %v", err)
			}
		},
		"merge": func(t testing.TB, w *wait.Wait, _ *block.Device) {
			if err := w.Merge(t.Context()); err != nil {
				t.Errorf("merge when there is room: %v", err)
			}
		},
	} {
		t.Run(what, func(t *testing.T) {
			s := &storage{full: 8192}
			disk := blocktest.NewDisk(t, blocktest.FullCaps(10_000))
			w, d := over(t, device(t, disk.Open()), wait.Config{Storage: s})
			write(t, d, "kept", 512)
			if err := d.Flush(t.Context()); !errors.Is(err, syscall.ENOSPC) {
				t.Errorf("flush on a full disk: %v", err)
			}
			s.full = 0
			rest(t, w, d)
			again := &storage{p: bytes.Clone(s.p)}
			_, d = over(t, device(t, disk.Open()), wait.Config{Storage: again})
			want(t, d, "kept", 512)
		})
	}
}

// TestForgetCut: a merge fails when some of the bits of what it has copied are cleared
// already. What is written to the diff after that, and flushed, is found again.
func TestForgetCut(t *testing.T) {
	const stretch = 16 << 20 // what a page of the bitmap stands for
	s := &storage{}
	disk := blocktest.NewDisk(t, blocktest.FullCaps(2*stretch))
	w, d := over(t, device(t, disk.Open()), wait.Config{Storage: s})
	write(t, d, sectors("old.", 1), 0)
	write(t, d, sectors("old.", 1), stretch)
	if err := d.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.bad = 4096 + 4096 // the second page
	if err := w.Merge(t.Context()); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("%v, want that the disk is full", err)
	}
	s.bad = 0
	write(t, d, "new!", 0)
	if err := d.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	again := &storage{p: bytes.Clone(s.p)}
	_, d = over(t, device(t, disk.Open()), wait.Config{Storage: again})
	want(t, d, "new!old.", 0)
	want(t, d, "old.", stretch)
}

// TestForgetBesideFlush: a flush of the diff, under way while a merge clears bits, must not
// write the old ones behind that: what is written to the base from then on would be hidden.
func TestForgetBesideFlush(t *testing.T) {
	s := &storage{}
	disk := blocktest.NewDisk(t, blocktest.FullCaps(10_000))
	w, d := over(t, device(t, disk.Open()), wait.Config{Storage: s})
	write(t, d, "old", 0)
	if err := d.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.bad = 4096
	if err := w.Merge(t.Context()); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("%v, want that the disk is full", err)
	}
	s.bad = 0
	// The bits are to be written once more now. The flush that does so has them in its
	// hands, and waits for the disk, until the merge has cleared them, or waits for it.
	taken, cleared := make(chan struct{}), make(chan struct{})
	var first, clear sync.Once
	s.syncing = func() {
		first.Do(func() {
			close(taken)
			select {
			case <-cleared:
			case <-time.After(50 * time.Millisecond):
			}
		})
	}
	s.writing = func(_ []byte, off int64) {
		if off == 4096 {
			clear.Do(func() { close(cleared) })
		}
	}
	var flush sync.WaitGroup
	flush.Go(func() {
		if err := d.Flush(t.Context()); err != nil {
			t.Error(err)
		}
	})
	<-taken
	if err := w.Merge(t.Context()); err != nil {
		t.Fatal(err)
	}
	flush.Wait()
	write(t, d, "new", 0)
	again := &storage{p: bytes.Clone(s.p)}
	_, d = over(t, device(t, disk.Open()), wait.Config{Storage: again})
	want(t, d, "new", 0)
}

// TestBitsOfStableBytes: what is written while a flush waits for the disk has no bit in
// the bitmap that this flush writes, as it may not be stable when the bits are.
func TestBitsOfStableBytes(t *testing.T) {
	s := &storage{}
	disk := blocktest.NewDisk(t, blocktest.FullCaps(10_000))
	_, d := over(t, device(t, disk.Open()), wait.Config{Storage: s})
	write(t, d, sectors("a", 1), 0)
	var late sync.Once
	s.syncing = func() { late.Do(func() { write(t, d, sectors("b", 1), 512) }) }
	bits := byte(0)
	s.writing = func(p []byte, off int64) {
		if off == 4096 {
			bits = p[0]
		}
	}
	if err := d.Flush(t.Context()); err != nil || bits != 0x80 {
		t.Errorf("%v, bits %08b; want the first alone", err, bits)
	}
	if err := d.Flush(t.Context()); err != nil || bits != 0xc0 {
		t.Errorf("%v, bits %08b behind the next flush", err, bits)
	}
}

// FuzzDiff opens a diff with any header and any bits.
func FuzzDiff(f *testing.F) {
	const size = 40_000
	s := &storage{}
	b, err := memory.New(memory.Config{Size: size})
	if err != nil {
		f.Fatal(err)
	}
	next := device(f, b)
	_, d := over(f, next, wait.Config{Storage: s})
	write(f, d, "some bytes", 5000)
	if err := d.Flush(f.Context()); err != nil {
		f.Fatal(err)
	}
	f.Add(s.p[:48], s.p[4096:4096+16], len(s.p))
	f.Add(s.p[:48], []byte{0xff, 0xff, 0xff}, len(s.p))
	f.Add(s.p[:48], []byte{}, 4096)
	f.Add([]byte{}, []byte{}, 0)
	f.Fuzz(func(t *testing.T, head, bits []byte, n int) {
		if n < 0 || n > 1<<17 {
			return
		}
		s := &storage{p: make([]byte, n)}
		copy(s.p[:min(n, 4096)], head)
		copy(s.p[min(n, 4096):], bits)
		b, err := memory.New(memory.Config{Size: size})
		if err != nil {
			t.Fatal(err)
		}
		next := device(t, b)
		l, err := wait.Layer(wait.Config{Storage: s})(next)
		if err != nil {
			return
		}
		d, w := device(t, l), l.(*wait.Wait)
		was := make([]byte, size)
		if err := d.ReadAt(t.Context(), was, 0); err != nil {
			t.Fatal(err)
		}
		if n := w.Status().Waiting; n < 0 || n > size {
			t.Fatalf("%d bytes are waiting", n)
		}
		if err := w.Merge(t.Context()); err != nil {
			t.Fatal(err)
		}
		is := make([]byte, size)
		if err := next.ReadAt(t.Context(), is, 0); err != nil || !bytes.Equal(was, is) {
			t.Fatalf("the merge changed the contents, %v", err)
		}
	})
}

// A server takes the writes of a disk whose image is still being copied to it.
func Example() {
	ctx := context.Background()
	dir, err := os.MkdirTemp("", "wait")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)
	image := filepath.Join(dir, "image")
	var group wait.Group // of all such devices of the program
	w, err := wait.New(ctx, wait.Config{Diff: filepath.Join(dir, "diff"), Group: &group}, 8192, func(context.Context) (*block.Device, error) {
		f, err := file.Open(file.Config{Path: image})
		if err != nil {
			return nil, err
		}
		return block.New(f)
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	dev, err := block.New(w)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer dev.Close()
	fmt.Println(dev.WriteAt(ctx, bytes.Repeat([]byte("new "), 128), 512, block.FUA))
	// The copy is complete now, and the administrator says so.
	if err := os.WriteFile(image, bytes.Repeat([]byte("old "), 2048), 0o600); err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(group.Merge(ctx))
	p, err := os.ReadFile(image)
	fmt.Printf("%q %v\n", p[508:516], err)
	// Output:
	// <nil>
	// <nil>
	// "old new " <nil>
}
