package ranges

import (
	"math/rand/v2"
	"testing"
)

// TestNotes adds many changes that wait for each other, and wants the notes of who
// waits for whom to grow with their number, not with its square.
func TestNotes(t *testing.T) {
	const count = 2000
	rng := rand.New(rand.NewPCG(1, 1))
	for name, next := range map[string]func(i int64) (off, n int64){
		"one place":   func(int64) (int64, int64) { return 100, 10 },
		"growing":     func(i int64) (int64, int64) { return count - i, 2*i + 1 },
		"shrinking":   func(i int64) (int64, int64) { return i, 2*count - 2*i },
		"sliding":     func(i int64) (int64, int64) { return i, 100 },
		"random":      func(int64) (int64, int64) { return rng.Int64N(1000), 1 + rng.Int64N(1000) },
		"small, wide": func(i int64) (int64, int64) { return i % 50 * (i % 2), 1 + 50*(1-i%2) },
	} {
		var q Queue
		var entries []*Entry
		ready := map[*Entry]bool{}
		for i := range int64(count) {
			e := &Entry{}
			e.Unblocked = func() { ready[e] = true }
			off, n := next(i)
			if q.Add(e, off, n) {
				ready[e] = true
			}
			entries = append(entries, e)
		}
		notes := 0
		for _, e := range entries {
			notes += len(e.dependents)
		}
		if notes > 20*count {
			t.Errorf("%s: %d notes for %d changes", name, notes, count)
		}
		// None may begin while an older one that it overlaps is there.
		for i, e := range entries {
			if !ready[e] {
				t.Fatalf("%s: change %d waits, and all older ones are gone", name, i)
			}
			for j, y := range entries[i+1 : min(i+100, count)] {
				if ready[y] && y.off < e.end && e.off < y.end {
					t.Fatalf("%s: change %d may begin before %d", name, i+1+j, i)
				}
			}
			q.Remove(e)
		}
		if q.Busy() {
			t.Errorf("%s: changes are left", name)
		}
	}
}

// TestTryAdd registers only what overlaps nothing, and leaves no trace otherwise.
func TestTryAdd(t *testing.T) {
	var q Queue
	var a, b, c Entry
	c.Unblocked = func() {}
	if !q.TryAdd(&a, 10, 10) {
		t.Fatal("refused in an empty queue")
	}
	for _, x := range [][2]int64{{10, 10}, {0, 11}, {19, 1}, {12, 2}, {0, 100}} {
		if q.TryAdd(&b, x[0], x[1]) {
			t.Fatalf("%d bytes at %d beside 10 at 10", x[1], x[0])
		}
	}
	if !q.TryAdd(&b, 20, 5) {
		t.Fatal("refused beside another")
	}
	q.Remove(&b)
	if q.Add(&c, 15, 10) {
		t.Fatal("a change did not wait for one of TryAdd")
	}
	q.Remove(&a)
	q.Remove(&c)
	if q.Busy() {
		t.Error("changes are left")
	}
}
