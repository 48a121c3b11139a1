package readonly_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"nbd.example/nbd/backend/memory"
	"nbd.example/nbd/block"
	"nbd.example/nbd/block/blocktest"
	"nbd.example/nbd/layer/readonly"
)

// TestRefuses: no change reaches the device below, by any door.
func TestRefuses(t *testing.T) {
	ctx := t.Context()
	disk := blocktest.NewDisk(t, blocktest.FullCaps(1<<16))
	disk.Hook = func(c blocktest.Call) error {
		switch c.Method {
		case "WriteAt", "Trim", "WriteZeroes":
			t.Errorf("%v reached the device below", c)
		}
		return nil
	}
	d, err := block.Stack(disk.Open(), readonly.Layer())
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	for name, err := range map[string]error{
		"write": d.WriteAt(ctx, make([]byte, 8), 0, 0),
		"FUA":   d.WriteAt(ctx, make([]byte, 8), 0, block.FUA),
		"trim":  d.Trim(ctx, 0, 4096, 0),
		"zero":  d.WriteZeroes(ctx, 0, 4096, 0),
	} {
		if !errors.Is(err, block.ErrReadOnly) {
			t.Errorf("%s: %v, want %v", name, err, block.ErrReadOnly)
		}
	}
	if d.TryWrite(make([]byte, 8), 0) {
		t.Error("TryWrite succeeded")
	}
	if err := d.Flush(ctx); err != nil {
		t.Errorf("flush: %v", err)
	}
}

func Example() {
	disk, err := memory.New(memory.Config{Size: 1 << 20})
	if err != nil {
		fmt.Println(err)
		return
	}
	d, err := block.Stack(disk, readonly.Layer())
	if err != nil {
		fmt.Println(err)
		return
	}
	defer d.Close()
	fmt.Println(d.WriteAt(context.Background(), []byte("hello"), 0, 0))
	// Output: read-only device
}
