package blocktest_test

import (
	"testing"

	"nbd.example/nbd/backend/memory"
	"nbd.example/nbd/block"
	"nbd.example/nbd/block/blocktest"
	"nbd.example/nbd/layer/readonly"
)

// The whole suite for a back end: a test function that says how to open one.
func ExampleRun() {
	_ = func(t *testing.T) { // func TestConformance(t *testing.T) {
		blocktest.Run(t, blocktest.Target{
			Open: func(_ testing.TB, size int64) (block.Backend, error) {
				return memory.New(memory.Config{Size: size})
			},
		})
	}
}

// A layer needs less: what is below it, the suite brings.
func ExampleRunLayer() {
	_ = func(t *testing.T) { // func TestConformance(t *testing.T) {
		blocktest.RunLayer(t, blocktest.LayerTarget{
			New: func(testing.TB) block.Layer { return readonly.Layer() },
		})
	}
}

// What stands over a disk must not lose what was flushed when the power is cut, and may lose
// the rest.
func ExampleDisk_Cut() {
	_ = func(t *testing.T) { // func TestPowerCut(t *testing.T) {
		disk := blocktest.NewDisk(t, blocktest.FullCaps(1<<20))
		d, err := block.Stack(disk.Open() /* the layer to test */)
		if err != nil {
			t.Fatal(err)
		}
		if err := d.WriteAt(t.Context(), []byte("kept"), 0, 0); err != nil {
			t.Fatal(err)
		}
		if err := d.Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		disk.Cut()
		d.Close()
		if got := string(disk.Contents()[:4]); got != "kept" {
			t.Errorf("after the cut there is %q", got)
		}
	}
}
