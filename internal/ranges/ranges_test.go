package ranges

import (
	"math/rand/v2"
	"sync"
	"testing"
)

// TestOrder lets many goroutines change overlapping ranges and demands that no
// two of them are ever in the same byte, and that the last one in is the last
// one to have been added.
func TestOrder(t *testing.T) {
	var q Queue
	var inside [64]int
	var last [64]int
	var mu sync.Mutex // guards the test's own figures, and makes Add and its number one step
	var wg sync.WaitGroup
	rng := rand.New(rand.NewPCG(1, 2))
	number := 0
	for range 8 {
		seed := rng.Uint64()
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(seed, 3))
			var e Entry
			for range 2000 {
				off := rng.Int64N(60)
				n := 1 + rng.Int64N(4)
				ready := make(chan struct{})
				e.Unblocked = func() { close(ready) }
				mu.Lock()
				number++
				mine := number
				now := q.Add(&e, off, n)
				mu.Unlock()
				if !now {
					<-ready
				}
				mu.Lock()
				for i := off; i < off+n; i++ {
					if inside[i]++; inside[i] != 1 {
						t.Errorf("%d changes in byte %d", inside[i], i)
					}
					if last[i] > mine {
						t.Errorf("change %d after change %d in byte %d", mine, last[i], i)
					}
					last[i] = mine
				}
				mu.Unlock()
				mu.Lock()
				for i := off; i < off+n; i++ {
					inside[i]--
				}
				mu.Unlock()
				q.Remove(&e)
			}
		})
	}
	wg.Wait()
	if q.Busy() {
		t.Error("changes are left")
	}
}

func TestDisjointRunSideBySide(t *testing.T) {
	var q Queue
	var a, b, c Entry
	unblocked := 0
	c.Unblocked = func() { unblocked++ }
	if !q.Add(&a, 0, 10) || !q.Add(&b, 10, 10) {
		t.Fatal("neighbours block each other")
	}
	if q.Add(&c, 5, 10) {
		t.Fatal("an overlap was let in")
	}
	q.Remove(&a)
	if unblocked != 0 {
		t.Fatal("unblocked while one of two is still there")
	}
	q.Remove(&b)
	if unblocked != 1 {
		t.Fatalf("unblocked %d times, not once", unblocked)
	}
}

func BenchmarkAddRemove(b *testing.B) {
	var q Queue
	var e Entry
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		q.Add(&e, int64(i), 4096)
		q.Remove(&e)
	}
}
