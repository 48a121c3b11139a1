package block_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"nbd.example/nbd/backend/memory"
	"nbd.example/nbd/block"
	"nbd.example/nbd/block/blocktest"
)

// upper is a layer that shows letters in upper case. It forwards what it can
// answer for: reading. So its device is read-only.
type upper struct{ next *block.Device }

func (u upper) Caps() block.Caps { return block.Caps{Size: u.next.Size()} }
func (u upper) Close() error     { return u.next.Close() }
func (u upper) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := u.next.ReadAt(ctx, p, off); err != nil {
		return err
	}
	copy(p, strings.ToUpper(string(p)))
	return nil
}

func upperLayer(next *block.Device) (block.Backend, error) { return upper{next}, nil }

// TestStackCloses wants everything closed when a part of a stack fails.
func TestStackCloses(t *testing.T) {
	failed := errors.New("failed")
	fails := func(*block.Device) (block.Backend, error) { return nil, failed }
	lies := func(next *block.Device) (block.Backend, error) {
		return liar{upper{next}}, nil
	}
	for _, x := range []struct {
		name   string
		layers []block.Layer
		want   string
	}{
		{"the lowest layer fails", []block.Layer{fails, upperLayer}, "failed"},
		{"the top layer fails", []block.Layer{upperLayer, fails}, "failed"},
		{"a layer lies", []block.Layer{upperLayer, lies, upperLayer}, "promises Cache"},
	} {
		disk := blocktest.NewDisk(t, blocktest.FullCaps(4096))
		d, err := block.Stack(disk.Open(), x.layers...)
		if d != nil || err == nil || !strings.Contains(err.Error(), x.want) {
			t.Errorf("%s: error %v, want %q", x.name, err, x.want)
		}
		if disk.Live() != 0 {
			t.Errorf("%s: the disk is still open", x.name)
		}
	}
	disk := blocktest.NewDisk(t, block.Caps{Size: 5, BlockSize: block.BlockSize{Minimum: 2}})
	if _, err := block.Stack(disk.Open()); err == nil || disk.Live() != 0 {
		t.Errorf("a base that lies: error %v, %d open", err, disk.Live())
	}
	disk = blocktest.NewDisk(t, blocktest.FullCaps(4096))
	d, err := block.Stack(disk.Open(), upperLayer, upperLayer)
	must(t, err)
	must(t, d.Close())
	must(t, d.Close()) // the disk would complain
	if disk.Live() != 0 {
		t.Error("the disk is still open after Close")
	}
}

type liar struct{ upper }

func (l liar) Caps() block.Caps {
	c := l.upper.Caps()
	c.Cache = block.Native
	return c
}

func ExampleNew() {
	backend, err := memory.New(memory.Config{Size: 1 << 20})
	if err != nil {
		panic(err)
	}
	disk, err := block.New(backend)
	if err != nil {
		panic(err)
	}
	defer disk.Close()

	ctx := context.Background()
	if err := disk.WriteAt(ctx, []byte("hello"), 1000, block.FUA); err != nil {
		panic(err)
	}
	p := make([]byte, 5)
	if err := disk.ReadAt(ctx, p, 1000); err != nil {
		panic(err)
	}
	fmt.Printf("%s\n", p)
	fmt.Println(disk.ReadAt(ctx, p, 1<<20))
	// Output:
	// hello
	// out of range: 5 bytes at 1048576 of 1048576
}

// A layer that shows letters in upper case, and forwards nothing but reading.
func ExampleStack() {
	backend, err := memory.New(memory.Config{Size: 4096})
	if err != nil {
		panic(err)
	}
	ctx := context.Background()
	if err := backend.(block.Writer).WriteAt(ctx, []byte("quiet"), 0, 0); err != nil {
		panic(err)
	}
	disk, err := block.Stack(backend, upperLayer)
	if err != nil {
		panic(err)
	}
	defer disk.Close() // closes the memory, too

	p := make([]byte, 5)
	if err := disk.ReadAt(ctx, p, 0); err != nil {
		panic(err)
	}
	fmt.Printf("%s\n", p)
	fmt.Println(disk.Trim(ctx, 0, 4096, 0))
	// Output:
	// QUIET
	// read-only device
}
