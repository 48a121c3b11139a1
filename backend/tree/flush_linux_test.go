package tree

import (
	"fmt"
	"testing"

	"nbd.example/nbd/block"
)

// TestStable writes what must be stable while many files have changed. It is made stable
// through the files that it was written to: another one may not tell how that ended.
func TestStable(t *testing.T) {
	for name, w := range map[string]*watched{"One by one": {each: true}, "All at once": {}} {
		t.Run(name, func(t *testing.T) {
			_, d := openWatched(t, Config{Size: 1 << 20, MaxOpen: 4}, w)
			p := make([]byte, BlockSize)
			for b := range int64(40) {
				write(t, d, b, p...)
			}
			for b := range int64(10) {
				var events string
				w.saw = func(event, name string) {
					if name == fmt.Sprintf("FILE%04X", b) {
						events += event + " "
					}
				}
				if err := d.WriteAt(t.Context(), p, b*BlockSize, block.FUA); err != nil {
					t.Fatal(err)
				}
				w.saw = nil
				if events != "write sync " {
					t.Errorf("block %d: %s", b, events)
				}
			}
		})
	}
}

// TestStableClosed makes a long write stable, of which not all files can stay open.
func TestStableClosed(t *testing.T) {
	w := &watched{}
	_, d := openWatched(t, Config{Size: 1 << 20, MaxOpen: 2}, w)
	if err := d.WriteAt(t.Context(), make([]byte, 10*BlockSize), 0, block.FUA); err != nil {
		t.Fatal(err)
	}
	if w.alls.Load() != 1 {
		t.Error("only files that were opened again were made stable")
	}
}

// TestFlushReopened flushes files that were closed after they were written, and opened again to
// read or to write them.
func TestFlushReopened(t *testing.T) {
	for name, x := range map[string]struct {
		closed, written bool
		want            int64
	}{
		"kept":              {false, false, 0},
		"kept, and written": {false, true, 0},
		"read":              {true, false, 1},
		"written":           {true, true, 1},
	} {
		t.Run(name, func(t *testing.T) {
			w := &watched{}
			_, d := openWatched(t, Config{Size: 1 << 20, MaxOpen: 1}, w)
			p := make([]byte, 1)
			write(t, d, 1, 'b')
			write(t, d, 0, 'a')
			if err := d.Flush(t.Context()); err != nil {
				t.Fatal(err)
			}
			w.alls.Store(0)
			write(t, d, 0, 'A')
			if x.closed && !d.TryRead(p, BlockSize) {
				t.Fatal("not read in place")
			}
			if x.written {
				write(t, d, 0, 'A')
			} else if !d.TryRead(p, 0) {
				t.Fatal("not read in place")
			}
			if err := d.Flush(t.Context()); err != nil || w.alls.Load() != x.want {
				t.Errorf("all was made stable %d times, want %d; %v", w.alls.Load(), x.want, err)
			}
		})
	}
}

// TestFlushRemoved flushes a file that was removed after it was written, and one that was made
// in its place.
func TestFlushRemoved(t *testing.T) {
	for _, again := range []bool{false, true} {
		w := &watched{}
		_, d := openWatched(t, Config{Size: 1 << 20}, w)
		write(t, d, 0, 'a')
		if err := d.Trim(t.Context(), 0, BlockSize, 0); err != nil {
			t.Fatal(err)
		}
		if again {
			write(t, d, 0, 'b')
		}
		if err := d.Flush(t.Context()); err != nil || w.alls.Load() > 0 {
			t.Errorf("written again: %t; all was made stable, %v", again, err)
		}
	}
}

// TestKeepWritten keeps files open that were written, where a flush makes them stable one by one.
func TestKeepWritten(t *testing.T) {
	tree, d := openWatched(t, Config{Size: 1 << 20, MaxOpen: 4}, &watched{each: true})
	p := make([]byte, BlockSize)
	for range 2 {
		for b := range int64(40) {
			if !d.TryWrite(p, b*BlockSize) {
				write(t, d, b, p...)
			}
			if tree.cache.noted(b) == 0 {
				t.Fatalf("block %d was closed after it was written", b)
			}
		}
	}
}

// TestFewListed lists no more of the files that were written than it is of use.
func TestFewListed(t *testing.T) {
	tree, d := openWatched(t, Config{Size: 1 << 30}, &watched{})
	for i := range int64(2 * fewFiles) {
		write(t, d, i*fan, 'a')
		if n := tree.dirty.files.count; n > fewFiles {
			t.Fatalf("%d files are listed", n)
		}
	}
}
