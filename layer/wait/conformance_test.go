package wait_test

import (
	"fmt"
	"path/filepath"
	"sync/atomic"
	"testing"

	"nbd.example/nbd/block"
	"nbd.example/nbd/block/blocktest"
	"nbd.example/nbd/layer/wait"
)

var diffs atomic.Int64

// newDiff returns the path of a diff that does not exist yet.
func newDiff(t testing.TB) string {
	return filepath.Join(t.TempDir(), fmt.Sprint("diff", diffs.Add(1)))
}

// TestConformance is for devices that collect. With a new diff for each they are
// as volatile as the diff.
func TestConformance(t *testing.T) {
	blocktest.RunLayer(t, blocktest.LayerTarget{
		New:      func(t testing.TB) block.Layer { return wait.Layer(wait.Config{Diff: newDiff(t)}) },
		Volatile: true,
		Steps:    150,
	})
}

// TestConformanceReopened is for devices that collect, are closed, and go on.
func TestConformanceReopened(t *testing.T) {
	var disk *blocktest.Disk
	var diff string
	var base []byte
	over := func(testing.TB) (block.Backend, error) {
		next, err := block.New(disk.Open())
		if err != nil {
			return nil, err
		}
		return wait.Layer(wait.Config{Diff: diff})(next)
	}
	blocktest.Run(t, blocktest.Target{
		Open: func(t testing.TB, size int64) (block.Backend, error) {
			disk, diff = blocktest.NewDisk(t, blocktest.FullCaps(size)), newDiff(t)
			for off := int64(0); off+5000 < size; off += 20000 {
				disk.Load(fmt.Appendf(nil, "%05000d", off), off)
			}
			base = disk.Contents()
			return over(t)
		},
		Reopen:  over,
		Initial: func(p []byte, off int64) { copy(p, base[off:]) },
	})
}

// TestConformanceMerged is for devices that have merged: everything passes through.
func TestConformanceMerged(t *testing.T) {
	for _, k := range []struct {
		name string
		caps func(int64) block.Caps
	}{
		{"Full", blocktest.FullCaps},
		{"Aligned", func(size int64) block.Caps {
			c := blocktest.FullCaps((size + 4095) &^ 4095)
			c.BlockSize.Minimum = 4096
			return c
		}},
	} {
		t.Run(k.name, func(t *testing.T) {
			var disk *blocktest.Disk
			over := func(t testing.TB) (block.Backend, error) {
				next, err := block.New(disk.Open())
				if err != nil {
					return nil, err
				}
				b, err := wait.Layer(wait.Config{Diff: newDiff(t)})(next)
				if err != nil {
					return nil, err
				}
				return b, b.(*wait.Wait).Merge(t.Context())
			}
			blocktest.Run(t, blocktest.Target{
				Open: func(t testing.TB, size int64) (block.Backend, error) {
					disk = blocktest.NewDisk(t, k.caps(size))
					return over(t)
				},
				Cut:     func(testing.TB) { disk.Cut() },
				Reopen:  over,
				AnySize: true,
			})
		})
	}
}
