package crash

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"slices"
	"testing"

	"nbd.example/nbd/block"
	"nbd.example/nbd/block/blocktest"
)

// TestConformance has the disk obey the contracts of package block.
func TestConformance(t *testing.T) {
	var w *World
	var now int64
	rnd := rand.New(rand.NewPCG(1, 2))
	blocktest.Run(t, blocktest.Target{
		Open: func(_ testing.TB, size int64) (block.Backend, error) {
			w, now = New(), size
			return w.Disk("d", size), nil
		},
		Reopen: func(testing.TB) (block.Backend, error) { return w.Disk("d", now), nil },
		Cut:    func(testing.TB) { w = w.Now(rnd) },
		Steps:  200,
	})
}

func fill(b byte) []byte { return bytes.Repeat([]byte{b}, Sector) }

// outcomes returns what the cuts leave after each event, as read returns it.
func outcomes(w *World, read func(*World) string) []map[string]bool {
	list := make([]map[string]bool, w.Events()+1)
	for i := range list {
		list[i] = map[string]bool{}
	}
	for seed := range uint64(40) {
		w.Cuts(rand.New(rand.NewPCG(seed, 0)), func(c *Cut) bool {
			list[c.At][read(c.World)] = true
			return true
		})
	}
	return list
}

func wantOutcomes(t *testing.T, got []map[string]bool, want ...[]string) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%d cuts, want %d", len(got), len(want))
	}
	for i := range got {
		var list []string
		for k := range got[i] {
			list = append(list, k)
		}
		slices.Sort(list)
		if !slices.Equal(list, want[i]) {
			t.Errorf("after event %d there may be %q, want %q", i, list, want[i])
		}
	}
}

// TestDisk cuts a disk after each of a few events: every sector for itself is old
// or new until it is flushed.
func TestDisk(t *testing.T) {
	w := New()
	d := w.Disk("d", 2*Sector)
	d.(block.Writer).WriteAt(t.Context(), append(fill('a'), fill('b')...), 0, 0)
	d.(block.Flusher).Flush(t.Context())
	d.(block.Writer).WriteAt(t.Context(), fill('c'), 0, 0)
	d.(block.Writer).WriteAt(t.Context(), fill('d'), Sector, block.FUA)
	d.(block.Trimmer).Trim(t.Context(), Sector, Sector, 0)
	got := outcomes(w, func(w *World) string {
		p := make([]byte, 2*Sector)
		w.Disk("d", 2*Sector).ReadAt(t.Context(), p, 0)
		return string([]byte{p[0] | '0', p[Sector] | '0'})
	})
	wantOutcomes(t, got, []string{"00"}, []string{"00", "0r", "q0", "qr"}, []string{"qr"}, []string{"qr", "sr"},
		[]string{"qt", "st"}, []string{"q0", "qt", "s0", "st"})
}

// TestFiles cuts while a file is made and renamed: contents and names are lost
// apart from each other.
func TestFiles(t *testing.T) {
	w := New()
	if err := w.Mkdir("/dir"); err != nil {
		t.Fatal(err)
	}
	w.Forget()
	f, err := w.OpenFile("dir/file", os.O_RDWR|os.O_CREATE)
	if err != nil {
		t.Fatal(err)
	}
	f.WriteAt([]byte("abc"), 0)
	f.Sync()
	w.SyncDir("/dir")
	f.Truncate(1)
	w.Unlink("/dir/file")
	got := outcomes(w, func(w *World) string {
		f, err := w.OpenFile("/dir/file", os.O_RDWR)
		if errors.Is(err, fs.ErrNotExist) {
			return "none"
		}
		p, err := io.ReadAll(io.NewSectionReader(f, 0, 100))
		if err != nil {
			t.Error(err)
		}
		return string(p)
	})
	wantOutcomes(t, got, []string{"none"}, []string{"", "none"}, []string{"", "\x00\x00\x00", "abc", "none"}, []string{"abc", "none"},
		[]string{"abc"}, []string{"a", "a\x00\x00", "abc"}, []string{"a", "a\x00\x00", "abc", "none"})
}

// TestMarks wants the promises that were made before a cut, and no others.
func TestMarks(t *testing.T) {
	w := New()
	w.Mark("one")
	w.Mark("two")
	w.Cuts(rand.New(rand.NewPCG(0, 0)), func(c *Cut) bool {
		if len(c.Marks) != c.At {
			t.Errorf("%v at %d", c.Marks, c.At)
		}
		return true
	})
}

// TestSame compares disks.
func TestSame(t *testing.T) {
	a, b := New(), New()
	for i, w := range []*World{a, b} {
		w.Disk("d", 4*Sector).(block.Writer).WriteAt(t.Context(), make([]byte, Sector), int64(i)*Sector, 0)
	}
	if !Same(a, b, "d") {
		t.Error("zeroes differ from zeroes")
	}
	b.Disk("d", 4*Sector).(block.Writer).WriteAt(t.Context(), []byte{1}, 3*Sector, 0)
	if Same(a, b, "d") {
		t.Error("a byte that was written makes no difference")
	}
}
