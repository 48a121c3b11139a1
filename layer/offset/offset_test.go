package offset_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"nbd.example/nbd/backend/pattern"
	"nbd.example/nbd/block"
	"nbd.example/nbd/block/blocktest"
	"nbd.example/nbd/layer/offset"
)

func TestConfig(t *testing.T) {
	for _, x := range []struct {
		c    offset.Config
		size int64  // of the new device
		want string // a part of the error
	}{
		{offset.Config{}, 1000, ""},
		{offset.Config{Offset: 100}, 900, ""},
		{offset.Config{Offset: 100, Size: 50}, 50, ""},
		{offset.Config{Offset: 1000}, 0, ""},
		{offset.Config{Offset: 1001}, 0, "past the end"},
		{offset.Config{Offset: 999, Size: 2}, 0, "past the end"},
		{offset.Config{Offset: 1, Size: 1<<63 - 1}, 0, "past the end"},
		{offset.Config{Offset: -1}, 0, "negative"},
		{offset.Config{Size: -1}, 0, "negative"},
	} {
		base, err := pattern.New(pattern.Config{Size: 1000})
		if err != nil {
			t.Fatal(err)
		}
		d, err := block.Stack(base, offset.Layer(x.c))
		if x.want != "" {
			if err == nil || !strings.Contains(err.Error(), x.want) {
				t.Errorf("%+v: %v, want an error with %q", x.c, err, x.want)
			}
			continue
		}
		if err != nil || d.Size() != x.size {
			t.Errorf("%+v: %v, want %d bytes", x.c, err, x.size)
			continue
		}
		d.Close()
	}
}

// TestErrorOffset moves the place that an error names, and keeps it inside.
func TestErrorOffset(t *testing.T) {
	disk := blocktest.NewDisk(t, blocktest.FullCaps(16<<10))
	broken := errors.New("broken")
	var at int64
	disk.Hook = func(blocktest.Call) error { return &block.OffsetError{Off: at, Err: broken} }
	d, err := block.Stack(disk.Open(), offset.Layer(offset.Config{Offset: 1000, Size: 2000}))
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	for _, x := range []struct{ below, here int64 }{{1000, 0}, {1500, 500}, {2999, 1999}, {0, 0}, {4096, 1999}} {
		at = x.below
		err := d.ReadAt(t.Context(), make([]byte, 2000), 0)
		var e *block.OffsetError
		if !errors.Is(err, broken) || !errors.As(err, &e) || e.Off != x.here {
			t.Errorf("an error at %d below: %v at %d, want at %d", x.below, err, e.Off, x.here)
		}
	}
}

func TestInstance(t *testing.T) {
	disk := blocktest.NewDisk(t, blocktest.FullCaps(1<<16))
	open := func(c offset.Config) string {
		d, err := block.Stack(disk.Open(), offset.Layer(c))
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		return d.Caps().Instance
	}
	names := map[string]offset.Config{}
	for _, c := range []offset.Config{{}, {Offset: 1}, {Size: 1}, {Offset: 1, Size: 1}} {
		name := open(c)
		if other, ok := names[name]; ok {
			t.Errorf("%+v and %+v have the same instance", c, other)
		}
		if name != open(c) {
			t.Errorf("%+v changes its instance", c)
		}
		names[name] = c
	}
}

// The second partition of a disk.
func Example() {
	disk, err := pattern.New(pattern.Config{Size: 1 << 20})
	if err != nil {
		fmt.Println(err)
		return
	}
	d, err := block.Stack(disk, offset.Layer(offset.Config{Offset: 4096, Size: 8192}))
	if err != nil {
		fmt.Println(err)
		return
	}
	defer d.Close()
	p := make([]byte, 8)
	fmt.Println(d.ReadAt(context.Background(), p, 0), p)
	fmt.Println(d.Size(), d.ReadAt(context.Background(), p, 8190))
	// Output:
	// <nil> [0 0 0 0 0 0 16 0]
	// 8192 out of range: 8 bytes at 8190 of 8192
}
