package file_test

import (
	"bytes"
	"os"
	"testing"

	"nbd.example/nbd/backend/file"
)

// TestGrows makes a file longer and shorter while it is open.
func TestGrows(t *testing.T) {
	path := image(t, t.TempDir(), 1<<20)
	_, d := open(t, file.Config{Path: path})
	want := func(there, size int64) {
		t.Helper()
		must(t, os.Truncate(path, there))
		if found, err := d.Grow(1); found != there || err != nil || d.Size() != size {
			t.Fatalf("of %d bytes it found %d, %v, and has %d, want %d", there, found, err, d.Size(), size)
		}
	}
	want(1<<20, 1<<20)
	want(3<<20+5, 3<<20+5)
	// The new end is as good as the rest, on all paths.
	data := bytes.Repeat([]byte("grown"), 20000)
	off := d.Size() - int64(len(data))
	must(t, d.WriteAt(t.Context(), data, off, 0))
	got := make([]byte, len(data))
	must(t, d.ReadAt(t.Context(), got, off))
	if !bytes.Equal(got, data) {
		t.Error("what was written behind the old end is not read back")
	}
	if d.TryRead(got[:4096], off) && !bytes.Equal(got[:4096], data[:4096]) {
		t.Error("what was written behind the old end is not read back at once")
	}
	if s, ok := d.Range(off, 65536, false); ok && (s.Off != off || s.Len != 65536) {
		t.Errorf("a span of 65536 bytes at %d: %+v", off, s)
	}
	must(t, d.WriteZeroes(t.Context(), off, 65536, 0))
	must(t, d.Flush(t.Context()))
	want(2<<20, 3<<20+5)
	if err := d.ReadAt(t.Context(), got, off); err == nil {
		t.Error("what is gone is read")
	}
	must(t, d.ReadAt(t.Context(), got, 0))
}

// TestGrowsNot: a size that was asked for stays.
func TestGrowsNot(t *testing.T) {
	path := image(t, t.TempDir(), 1<<20)
	_, d := open(t, file.Config{Path: path, Size: 1 << 19})
	must(t, os.Truncate(path, 2<<20))
	if found, err := d.Grow(1); found != 1<<19 || err != nil || d.Size() != 1<<19 {
		t.Errorf("it found %d, %v, and has %d", found, err, d.Size())
	}
}
