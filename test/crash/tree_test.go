package crash_test

import (
	"io"
	"math/rand/v2"
	"sync"
	"testing"

	"nbd.example/nbd/backend/tree"
	"nbd.example/nbd/block"
	"nbd.example/nbd/block/blocktest"
	"nbd.example/nbd/test/crash"
)

// treeFS is where a tree lives, on a machine that can lose its power.
type treeFS struct {
	w *crash.World
	// each says that files and folders are made stable one by one.
	each bool
	id   string
}

func (f treeFS) Open(string) error { return nil }

func (f treeFS) OpenFile(name string, flag int) (tree.File, error) {
	x, err := f.w.OpenFile(name, flag)
	if err != nil {
		return nil, err
	}
	return treeFile{x}, nil
}

func (f treeFS) OpenNow(name string, flag int) tree.File {
	x, err := f.w.OpenFile(name, flag)
	if err != nil {
		return nil
	}
	return treeFile{x}
}

// treeFile never waits.
type treeFile struct{ *crash.File }

func (f treeFile) ReadNow(p []byte, off int64) bool {
	n, err := f.ReadAt(p, off)
	clear(p[n:])
	return err == nil || err == io.EOF
}

func (f treeFile) WriteNow(p []byte, off int64) bool {
	_, err := f.WriteAt(p, off)
	return err == nil
}

func (f treeFS) Mkdir(name string) error  { return f.w.Mkdir(name) }
func (f treeFS) Remove(name string) error { return f.w.Unlink(name) }
func (f treeFS) Instance(int64) string    { return f.id }
func (f treeFS) Close() error             { return nil }

func (f treeFS) SyncDir(name string) error {
	yield()
	return f.w.SyncDir(name)
}

func (f treeFS) ReadDir(name string, add func(string)) error {
	names, err := f.w.ReadDir(name)
	for _, s := range names {
		add(s)
	}
	return err
}

func (f treeFS) SyncAll() error {
	yield()
	f.w.SyncAll()
	return nil
}

func (f treeFS) SyncsAll() bool { return !f.each }

// treeSize has two levels of folders, and no round end.
const treeSize = 5<<30 + 700

func openTree(t *testing.T, w *crash.World, each bool) *block.Device {
	b, err := tree.Open(tree.Config{Path: "/srv/tree", Size: treeSize, MaxOpen: 5, FS: treeFS{w: w, each: each}})
	if err != nil {
		t.Fatal(err)
	}
	d, err := block.New(b)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// TestTree looks at a tree that several clients use, after a power cut at any
// point: what was flushed is there.
func TestTree(t *testing.T) {
	for name, each := range map[string]bool{"One by one": true, "All at once": false} {
		t.Run(name, func(t *testing.T) {
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			rnd := rand.New(rand.NewPCG(seed, 0))
			w := crash.New()
			if err := w.Mkdir("/srv"); err != nil {
				t.Fatal(err)
			}
			w.Forget()
			d := openTree(t, w, each)
			var clients []*client
			var all sync.WaitGroup
			for i := range 3 {
				c := newClient(t, w, i, 3, treeSize, rnd.Uint64())
				c.d = d
				clients = append(clients, c)
				all.Go(func() {
					for range 90 {
						c.work()
					}
				})
			}
			all.Wait()
			cuts := 0
			w.Cuts(rnd, func(c *crash.Cut) bool {
				cuts++
				if err := newPromises(clients, c.Marks).check(openTree(t, c.World, each), clients); err != nil {
					t.Errorf("seed %d, cut after %d of %d events, %s: %v", seed, c.At, w.Events(), c.Mix, err)
				}
				return !t.Failed()
			})
			t.Logf("%d events, %d cuts", w.Events(), cuts)
		})
	}
}

// TestTreeConformance runs the suite on such a machine, power cuts included.
func TestTreeConformance(t *testing.T) {
	var w *crash.World
	var now int64
	var id string
	rnd := rand.New(rand.NewPCG(rand.Uint64(), 0))
	again := func(testing.TB) (block.Backend, error) {
		return tree.Open(tree.Config{Path: "/tree", Size: now, FS: treeFS{w: w, id: id}})
	}
	blocktest.Run(t, blocktest.Target{
		Open: func(t testing.TB, size int64) (block.Backend, error) {
			w, now, id = crash.New(), max(size, 1), block.NewInstance()
			return again(t)
		},
		Reopen:  again,
		Cut:     func(testing.TB) { w = w.Now(rnd) },
		AnySize: true,
		Size:    300_000,
		Steps:   100,
	})
}
