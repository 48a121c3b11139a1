package file

import (
	"bytes"
	"context"
	"errors"
	"io"
	"math/bits"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"nbd.example/nbd/block"
	"nbd.example/nbd/internal/testgate"
)

// cached opens a new file of n bytes on a file system that can answer from
// memory or not at all.
func cached(t *testing.T, n int) *File {
	t.Helper()
	path := filepath.Join(testgate.DiskDir(t), "cached")
	if err := os.WriteFile(path, bytes.Repeat([]byte{7}, n), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := Open(Config{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	if f.sys.fast.read != readNowait || !f.sys.fast.spans {
		t.Fatalf("%s cannot be read without waiting, or the kernel does not tell what is in memory", path)
	}
	return f
}

// pageCount asks how many pages of f are in the page cache.
func pageCount(f *File) (n int) {
	page := int64(os.Getpagesize())
	for off := int64(0); off < f.size.Load(); off += page {
		if f.resident(off, min(page, f.size.Load()-off)) {
			n++
		}
	}
	return n
}

// drop takes the file out of memory.
func drop(t *testing.T, f *File) {
	t.Helper()
	if err := f.Flush(context.Background()); err != nil {
		t.Fatal(err)
	}
	for range 10 {
		// Pages that are on their way stay. After reading them none are.
		if err := f.ReadAt(context.Background(), make([]byte, f.size.Load()), 0); err != nil {
			t.Fatal(err)
		}
		if err := unix.Fadvise(int(f.fd), 0, 0, unix.FADV_DONTNEED); err != nil {
			t.Fatal(err)
		}
		if pageCount(f) == 0 {
			return
		}
	}
	t.Fatalf("the system does not take the file out of memory: %d pages are left", pageCount(f))
}

// TestHotAndCold looks at what is offered from memory, and what not.
func TestHotAndCold(t *testing.T) {
	const size = 4 << 20
	f := cached(t, size)
	p := make([]byte, 4096)
	want := func(hot bool, off, n int64) {
		t.Helper()
		if _, ok := f.Range(off, n, false); ok != hot {
			t.Errorf("a range of %d bytes at %d: %t, want %t", n, off, ok, hot)
		}
		p := make([]byte, n)
		if ok := f.TryRead(p, off); ok != hot {
			t.Errorf("TryRead of %d bytes at %d: %t, want %t", n, off, ok, hot)
		}
		if missed := f.sys.fast.missed.Load(); missed == hot {
			t.Errorf("missed is %t", missed)
		}
		if hot && !bytes.Equal(p, bytes.Repeat([]byte{7}, int(n))) {
			t.Errorf("TryRead of %d bytes at %d read something else", n, off)
		}
	}
	want(true, 0, 4096)
	want(true, size-4096, 4096)
	want(true, 1, size-1)
	drop(t, f)
	want(false, size/2, 4096)
	drop(t, f)
	want(false, 0, size) // longer than what is read without telling the scheduler
	drop(t, f)
	if err := f.ReadAt(context.Background(), p, 0); err != nil {
		t.Fatal(err)
	}
	want(true, 0, 4096)
	if err := f.ReadAt(context.Background(), make([]byte, size), 0); err != nil {
		t.Fatal(err)
	}
	want(true, 0, size)
	if f.TryRead(p, size-100) {
		t.Error("TryRead read behind the end")
	}
}

// TestAvoid wants what could not be sent to be avoided, and no more, as long as there
// is room for the difference.
func TestAvoid(t *testing.T) {
	path := filepath.Join(testgate.MemoryDir(t), "image")
	if err := os.WriteFile(path, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := Open(Config{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	want := func(ok bool, off, n int64) {
		t.Helper()
		if _, got := f.Range(off, n, false); got != ok {
			t.Errorf("a range of %d bytes at %d: %t, want %t", n, off, got, ok)
		}
	}
	avoid := func(off, n int64) {
		s, ok := f.Range(off, n, false)
		if !ok {
			t.Fatalf("no range of %d bytes at %d", n, off)
		}
		f.Avoid(s.Advance(100)) // of which some bytes had been sent
	}
	avoid(8192, 4196)
	want(true, 0, 8292)
	want(false, 0, 8293)
	want(false, 9000, 1)
	want(false, 12387, 8192)
	want(true, 12388, 8192)
	f.Avoid(block.Span{FD: f.fd + 1, Len: 1 << 20}) // of another file
	want(true, 0, 8192)
	for i := range int64(maxAvoided - 1) {
		avoid(1<<19+i*1024, 200)
	}
	want(true, 0, 8192)
	avoid(0, 512)
	want(false, 1<<20-1, 1)
}

// TestCache reads ahead, and waits until it is there.
func TestCache(t *testing.T) {
	f := cached(t, 1<<20)
	drop(t, f)
	if err := f.Cache(context.Background(), 0, 1<<20); err != nil {
		t.Fatal(err)
	}
	again := time.NewTicker(time.Millisecond)
	defer again.Stop()
	limit := time.After(time.Minute)
	for pageCount(f) != 1<<20/os.Getpagesize() {
		select {
		case <-again.C:
		case <-limit:
			t.Fatalf("%d pages are in memory", pageCount(f))
		}
	}
}

// TestSlowWrites has writes take long, by the clock.
func TestSlowWrites(t *testing.T) {
	f := cached(t, 4096)
	var now, takes time.Duration
	f.sys.fast.clock = func() time.Duration {
		now += takes
		return now
	}
	for _, x := range []struct {
		takes, passes time.Duration
		ok            bool
	}{
		{0, 0, true},
		{slowWrite, 0, true},                 // as long as it may take
		{slowWrite + 1, 0, true},             // slow, but done
		{0, 0, false},                        // so the next waits
		{0, slowPause - 2, false},            // and
		{0, 1, false},                        // waits
		{0, 1, true},                         // until now
		{slowWrite + 1, 0, true},             // slow again
		{0, slowPause + time.Second, true},   // long ago
		{0, slowPause + 3*time.Second, true}, // and forgotten
	} {
		now += x.passes
		takes = x.takes
		if ok := f.TryWrite([]byte{1}, 0); ok != x.ok {
			t.Fatalf("%+v: TryWrite: %t", x, ok)
		}
	}
}

// TestNeverFast wants no fast path where each operation may wait.
func TestNeverFast(t *testing.T) {
	path := cached(t, 4096).config.Path
	p := make([]byte, 512)
	for name, x := range map[string]struct {
		c           Config
		read, write bool
	}{
		"plain":     {Config{}, true, true},
		"read-only": {Config{ReadOnly: true}, true, false},
		"sync":      {Config{Sync: true}, true, false},
		"direct":    {Config{Direct: true}, false, false},
	} {
		x.c.Path = path
		f, err := Open(x.c)
		if err != nil {
			t.Fatal(err)
		}
		if ok := f.TryRead(p, 0); ok != x.read {
			t.Errorf("%s: TryRead: %t", name, ok)
		}
		if ok := f.TryWrite(p, 0); ok != x.write {
			t.Errorf("%s: TryWrite: %t", name, ok)
		}
		if _, ok := f.Range(0, 512, false); ok && !x.read {
			t.Errorf("%s: a range", name)
		}
		f.Close()
	}
}

// TestOffsetHalves puts the halves together as the kernel does.
func TestOffsetHalves(t *testing.T) {
	for _, off := range []int64{0, 1, 1<<32 - 1, 1 << 32, 1<<42 + 12345, 1<<63 - 1} {
		lo, hi := offsetHalves(off)
		const half = bits.UintSize / 2
		if got := int64(uint64(hi)<<half<<half | uint64(lo)); got != off {
			t.Errorf("%d became %d", off, got)
		}
	}
}

// TestFull fills a file system: a write that has no room breaks nothing, with
// FUA and without.
func TestFull(t *testing.T) {
	path := filepath.Join(testgate.Mounted(t, "tmpfs", "size=1M"), "image")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := Open(Config{Path: path, Size: 4 << 20})
	if err != nil {
		t.Fatal(err)
	}
	d, err := block.New(f)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	ctx := context.Background()
	for _, flags := range []block.Flags{0, block.FUA} {
		err := d.WriteAt(ctx, make([]byte, 2<<20), 0, flags)
		var at *block.OffsetError
		if !errors.Is(err, unix.ENOSPC) || errors.Is(err, block.ErrNotStable) || !errors.As(err, &at) || at.Off > 1<<20 {
			t.Errorf("flags %d: error %v (%+v), want %v", flags, err, at, unix.ENOSPC)
		}
		if d.TryWrite(make([]byte, 2<<20), 1<<20) {
			t.Errorf("flags %d: TryWrite found room", flags)
		}
		if err := d.Broken(); err != nil {
			t.Errorf("flags %d: %v", flags, err)
		}
	}
	if err := d.Trim(ctx, 0, 4<<20, 0); err != nil {
		t.Error(err)
	}
	if err := d.WriteAt(ctx, make([]byte, 100), 0, block.FUA); err != nil {
		t.Error(err)
	}
}

// TestExplainStable tells the two errors of a stable write apart.
func TestExplainStable(t *testing.T) {
	f := cached(t, 4096)
	// Writing works, so it was the write-back.
	err := f.explainStable([]byte{1}, 5, unix.EIO)
	var at *block.OffsetError
	if !errors.Is(err, block.ErrNotStable) || !errors.Is(err, unix.EIO) || !errors.As(err, &at) || at.Off != 5 {
		t.Errorf("a failed write-back: %v (%+v)", err, at)
	}
	ro, err := Open(Config{Path: f.config.Path, ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer ro.Close()
	if err := ro.explainStable([]byte{1}, 5, unix.EIO); errors.Is(err, block.ErrNotStable) || !errors.Is(err, unix.EBADF) {
		t.Errorf("a failed write: %v", err)
	}
}

// TestPieces moves long requests through the aligned buffer.
func TestPieces(t *testing.T) {
	want := bytes.Repeat([]byte{1, 2, 3}, pieceSize)
	for _, unit := range []int64{512, 4096, maxAlignment} {
		var got bytes.Buffer
		calls := 0
		err := inPieces(want, unit, func(buf, part []byte, at int) error {
			if !aligned(buf, unit) || len(buf) != len(part) || at != got.Len() {
				t.Errorf("unit %d: a buffer of %d bytes for %d at %d, aligned: %t", unit, len(buf), len(part), at, aligned(buf, unit))
			}
			calls++
			copy(buf, part)
			got.Write(buf)
			return nil
		})
		if err != nil || calls != 3 || !bytes.Equal(got.Bytes(), want) {
			t.Errorf("unit %d: error %v after %d calls", unit, err, calls)
		}
		err = inPieces(want, unit, func(_, _ []byte, at int) error { return io.EOF })
		if err != io.EOF {
			t.Errorf("unit %d: error %v", unit, err)
		}
	}
}

// TestEndsAt knows the end of a file that others have cut.
func TestEndsAt(t *testing.T) {
	f := cached(t, 5000)
	for off, want := range map[int64]bool{0: false, 4999: false, 5000: true, 8192: true} {
		if got := f.endsAt(off); got != want {
			t.Errorf("at %d: %t", off, got)
		}
	}
}

// TestMapping reads a window until it is offered by the mapping, and lets the
// kernel look at it there.
func TestMapping(t *testing.T) {
	path := cached(t, 2*windowSize+5000).config.Path
	f, err := Open(Config{Path: path, Map: true})
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	mapped := func(off, n int64) bool {
		s, ok := f.Mapped(off, n)
		if ok {
			wantMapped(t, s, bytes.Repeat([]byte{7}, int(n)))
		}
		return ok
	}
	warm := func(off, n int64) {
		t.Helper()
		for range 2 * (warmReads + retryReads) {
			if mapped(off, n) {
				return
			}
		}
		t.Fatalf("%d bytes at %d are never mapped", n, off)
	}
	if mapped(0, 4096) {
		t.Error("mapped at the first read")
	}
	warm(0, 4096)
	warm(windowSize-100, 5000) // over a border
	warm(2*windowSize, 5000)   // to the end
	if err := f.Trim(context.Background(), 8192, 4096, 0); err != nil {
		t.Fatal(err)
	}
	if mapped(0, 4096) {
		t.Error("still mapped beside a hole")
	}
	warm(0, 4096)
	if err := os.Truncate(path, 4*windowSize); err != nil {
		t.Fatal(err)
	}
	if n, err := f.Remeasure(); n != 4*windowSize || err != nil {
		t.Errorf("the file was made larger, and has %d bytes, %v", n, err)
	}
	warm(2*windowSize, 5000)
	for range 2 * (warmReads + retryReads) {
		if mapped(2*windowSize, 5001) || mapped(3*windowSize, 4096) {
			t.Fatal("mapped behind the end of the mapping")
		}
	}
	if err := f.Trim(context.Background(), 2*windowSize, 2*windowSize, 0); err != nil {
		t.Fatal(err)
	}
	f.Avoid(block.Span{FD: f.fd, Len: 4096})
	if mapped(0, 4096) || !mapped(4096, 4096) {
		t.Error("mapped is not what it was but for the stretch that is to be avoided")
	}
	f.Avoid(block.MappedSpan(f.sys.mapping.address, 4096))
	if mapped(4096, 4096) {
		t.Error("still mapped after Avoid")
	}
}

// wantMapped has the kernel copy what s describes.
func wantMapped(t *testing.T, s block.Span, want []byte) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	n, _, errno := unix.Syscall(unix.SYS_WRITE, w.Fd(), s.Address(), uintptr(s.Len))
	w.Close()
	if errno != 0 || int64(n) != s.Len {
		t.Fatalf("write of %d bytes from a mapping: %d, error %v", s.Len, n, errno)
	}
	if got, err := io.ReadAll(r); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the mapping holds something else, error %v", err)
	}
}
