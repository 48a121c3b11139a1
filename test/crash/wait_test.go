package crash_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"slices"
	"sync"
	"testing"

	"nbd.example/nbd/block"
	"nbd.example/nbd/layer/wait"
	"nbd.example/nbd/test/crash"
)

// storage is a diff on a machine that can lose its power.
type storage struct {
	*crash.File
	w *crash.World
}

const diffName = "/diff"

func openStorage(t *testing.T, w *crash.World) storage {
	f, err := w.OpenFile(diffName, os.O_RDWR|os.O_CREATE)
	if err != nil {
		t.Fatal(err)
	}
	return storage{f, w}
}

func (s storage) WriteAt(p []byte, off int64) (int, error) {
	yield()
	defer yield()
	return s.File.WriteAt(p, off)
}

func (s storage) Sync() error {
	yield()
	defer yield()
	if err := s.File.Sync(); err != nil {
		return err
	}
	return s.w.SyncDir("/")
}

func (s storage) Remove() error { return s.w.Unlink(diffName) }

// waitSize has more stretches than are merged at once, and no round end.
const waitSize = 40*16<<20 + 700

// base opens the disk under the layer.
func base(t *testing.T, w *crash.World) *block.Device {
	d, err := block.New(w.Disk("base", waitSize))
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func overBase(t *testing.T, w *crash.World) (*wait.Wait, *block.Device) {
	b, err := wait.Layer(wait.Config{Storage: openStorage(t, w)})(base(t, w))
	if err != nil {
		t.Fatal(err)
	}
	d, err := block.New(b)
	if err != nil {
		t.Fatal(err)
	}
	return b.(*wait.Wait), d
}

type (
	begins struct{} // Merge is called
	isDone struct{} // Merge has returned
)

// TestWait merges under load, and looks at what is left after a power cut at any
// point: before the merge the base is untouched; everything that was flushed is in
// the diff or the base at any time, and in the base after it. A merge that was cut
// off can be done again, and be cut off again.
func TestWait(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rnd := rand.New(rand.NewPCG(seed, 0))
	w := crash.New()
	clients := startClients(t, w, rnd, 18)
	cuts := 0
	w.Cuts(rnd, func(c *crash.Cut) bool {
		cuts++
		err := checkWait(t, w, c, clients)
		if err == nil && rnd.IntN(100) == 0 {
			err = cutAgain(t, rnd, c, clients)
		}
		if err != nil {
			t.Errorf("seed %d, cut after %d of %d events, %s: %v", seed, c.At, w.Events(), c.Mix, err)
		}
		return !t.Failed()
	})
	t.Logf("%d events, %d cuts", w.Events(), cuts)
}

// startClients lets clients work before, while and after the layer merges.
func startClients(t *testing.T, w *crash.World, rnd *rand.Rand, steps int) []*client {
	var clients []*client
	const number = 3
	for i := range number {
		clients = append(clients, newClient(t, w, i, number, waitSize, rnd.Uint64()))
		clients[i].prepare(base(t, w))
	}
	w.Forget()
	layer, d := overBase(t, w)
	var merge, all sync.WaitGroup
	var once sync.Once
	for _, c := range clients {
		c.d = d
		all.Go(func() {
			for range steps {
				c.work()
			}
			once.Do(func() {
				merge.Go(func() {
					w.Mark(begins{})
					if err := layer.Merge(context.Background()); err != nil {
						t.Error(err)
					}
					w.Mark(isDone{})
				})
			})
			for range steps {
				c.work()
			}
			merge.Wait()
			for range steps {
				c.work()
			}
		})
	}
	all.Wait()
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	return clients
}

// checkWait looks at what a cut has left, merges it, and looks again.
func checkWait(t *testing.T, w *crash.World, c *crash.Cut, clients []*client) error {
	p, begun, done := newPromises(clients, c.Marks), slices.Contains(c.Marks, any(begins{})), slices.Contains(c.Marks, any(isDone{}))
	if done {
		if err := p.check(base(t, c.World), clients); err != nil {
			return fmt.Errorf("the base, which has merged: %w", err)
		}
	}
	before := untouched(t, w)
	if !begun && !crash.Same(before, c.World, "base") {
		return errors.New("the base was changed before the merge began")
	}
	layer, d := overBase(t, c.World)
	if err := p.check(d, clients); err != nil {
		return fmt.Errorf("the layer, opened again: %w", err)
	}
	seen := hold(t, d, clients)
	if err := layer.Merge(context.Background()); err != nil {
		return err
	}
	if !bytes.Equal(hold(t, base(t, c.World), clients), seen) {
		return errors.New("the base does not hold after the second merge what the layer held before")
	}
	if _, err := c.World.OpenFile(diffName, 0); !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("the diff is still there after the second merge: %v", err)
	}
	return d.Close()
}

// untouched returns the machine before the first event.
func untouched(t *testing.T, w *crash.World) (start *crash.World) {
	w.Cuts(rand.New(rand.NewPCG(0, 0)), func(c *crash.Cut) bool {
		start = c.World
		return false
	})
	return start
}

// cutAgain cuts the power while the second merge is under way, which c.World has
// just recorded: the bytes never change any more.
func cutAgain(t *testing.T, rnd *rand.Rand, c *crash.Cut, clients []*client) error {
	want := hold(t, base(t, c.World), clients)
	var failed error
	c.World.Cuts(rnd, func(again *crash.Cut) bool {
		_, d := overBase(t, again.World)
		if !bytes.Equal(hold(t, d, clients), want) {
			failed = fmt.Errorf("another cut after %d events of the second merge, %s: the layer holds something else", again.At, again.Mix)
		}
		return failed == nil
	})
	return failed
}
