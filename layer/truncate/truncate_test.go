package truncate_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"syscall"
	"testing"

	"nbd.example/nbd/backend/memory"
	"nbd.example/nbd/backend/pattern"
	"nbd.example/nbd/block"
	"nbd.example/nbd/block/blocktest"
	"nbd.example/nbd/layer/truncate"
)

func TestSizes(t *testing.T) {
	for _, x := range []struct {
		c    truncate.Config
		size int64
		want string // a part of the error
	}{
		{truncate.Config{}, 1000, ""},
		{truncate.Config{Size: 10}, 10, ""},
		{truncate.Config{Size: 1 << 40}, 1 << 40, ""},
		{truncate.Config{RoundUp: 512}, 1024, ""},
		{truncate.Config{RoundUp: 500}, 1000, ""},
		{truncate.Config{RoundDown: 512}, 512, ""},
		{truncate.Config{RoundDown: 4096}, 0, ""},
		{truncate.Config{Size: 700, RoundUp: 512}, 1024, ""},
		{truncate.Config{Size: math.MaxInt64, RoundUp: 1 << 20}, 0, "too many"},
		{truncate.Config{Size: -1}, 0, "negative"},
		{truncate.Config{RoundUp: 1, RoundDown: 1}, 0, "not both"},
	} {
		base, err := pattern.New(pattern.Config{Size: 1000})
		if err != nil {
			t.Fatal(err)
		}
		d, err := block.Stack(base, truncate.Layer(x.c))
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

// larger returns a device of 6000 bytes over one of 4096 with data, in blocks of
// 512.
func larger(t *testing.T) (*block.Device, *blocktest.Disk) {
	t.Helper()
	caps := blocktest.FullCaps(4096)
	caps.BlockSize.Minimum = 512
	disk := blocktest.NewDisk(t, caps)
	disk.Load(bytes.Repeat([]byte{7}, 4096), 0)
	d, err := block.Stack(disk.Open(), truncate.Layer(truncate.Config{Size: 6000}))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d, disk
}

func TestLarger(t *testing.T) {
	ctx := t.Context()
	d, disk := larger(t)
	want := append(bytes.Repeat([]byte{7}, 4096), make([]byte, 6000-4096)...)
	check := func(when string) {
		t.Helper()
		got := bytes.Repeat([]byte{0x55}, 6000)
		if err := d.ReadAt(ctx, got, 0); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: the contents differ, %v", when, err)
		}
		p := []byte{1, 1, 1}
		if err := d.ReadAt(ctx, p, 5000); err != nil || !bytes.Equal(p, make([]byte, 3)) {
			t.Errorf("%s: past the end: % x, %v", when, p, err)
		}
	}
	check("new")

	data := append(make([]byte, 100), 1)
	for _, off := range []int64{4096, 4000, 5899} {
		err := d.WriteAt(ctx, data, off, 0)
		var at *block.OffsetError
		if !errors.Is(err, syscall.ENOSPC) || !errors.As(err, &at) || at.Off != off+100 {
			t.Errorf("write at %d: %v, want ENOSPC at %d", off, err, off+100)
		}
	}
	check("after refused writes") // the first bytes at 4000 were zeroes, and not written

	clear(data)
	data[0] = 9
	if err := d.WriteAt(ctx, data, 4090, block.FUA); err != nil {
		t.Errorf("write that ends with zeroes: %v", err)
	}
	copy(want[4090:], data)
	for name, err := range map[string]error{
		"write zeroes past the end": d.WriteAt(ctx, make([]byte, 904), 5096, block.FUA),
		"zero":                      d.WriteZeroes(ctx, 4000, 2000, 0),
		"zero past the end":         d.WriteZeroes(ctx, 4096, 1904, block.NoHole),
		"fast zero past the end":    d.WriteZeroes(ctx, 4100, 7, block.FastZero),
		"trim past the end":         d.Trim(ctx, 4100, 1900, 0),
		"cache":                     d.Cache(ctx, 0, 6000),
		"cache past the end":        d.Cache(ctx, 5000, 1000),
		"flush":                     d.Flush(ctx),
	} {
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	clear(want[4000:])
	check("after zeroes")
	if !bytes.Equal(disk.Contents(), want[:4096]) {
		t.Error("the device below differs")
	}
	if d.TryRead(make([]byte, 2), 4095) || d.TryWrite(make([]byte, 2), 4095) {
		t.Error("the fast path goes past the end of the device below")
	}
	if _, ok := d.Range(4095, 2, false); ok {
		t.Error("a span goes past the end of the device below")
	}
}

func TestLargerExtents(t *testing.T) {
	d, _ := larger(t)
	tail := block.Hole | block.Zero
	for _, x := range []struct {
		off, n int64
		f      block.Flags
		want   string
	}{
		{0, 6000, 0, fmt.Sprint([]block.Extent{{Length: 4096}, {Length: 1904, State: tail}})},
		{0, 4096, 0, fmt.Sprint([]block.Extent{{Length: 4096}})},
		{0, 6000, block.One, fmt.Sprint([]block.Extent{{Length: 4096}})},
		{4095, 2, 0, fmt.Sprint([]block.Extent{{Length: 1}, {Length: 1904, State: tail}})},
		{4096, 1, block.One, fmt.Sprint([]block.Extent{{Length: 1904, State: tail}})},
		{5999, 1, 0, fmt.Sprint([]block.Extent{{Length: 1, State: tail}})},
	} {
		// The disk may tell of a run in pieces.
		var got []block.Extent
		for at := x.off; at < x.off+x.n; {
			before := at
			err := d.Extents(t.Context(), at, x.off+x.n-at, x.f, func(e block.Extent) bool {
				if last := len(got) - 1; last >= 0 && got[last].State == e.State {
					got[last].Length += e.Length
				} else {
					got = append(got, block.Extent{Length: e.Length, State: e.State})
				}
				at += e.Length
				return true
			})
			if err != nil || at == before {
				t.Fatalf("extents of %d at %d: %v", x.n, before, err)
			}
			if x.f&block.One != 0 && (at == 4096 || at == 6000) {
				break
			}
		}
		if fmt.Sprint(got) != x.want {
			t.Errorf("extents of %d at %d: %v, want %v", x.n, x.off, got, x.want)
		}
	}
}

// A device of 1000 bytes, for a client that wants whole sectors.
func Example() {
	disk, err := memory.New(memory.Config{Size: 1000})
	if err != nil {
		fmt.Println(err)
		return
	}
	d, err := block.Stack(disk, truncate.Layer(truncate.Config{RoundUp: 512}))
	if err != nil {
		fmt.Println(err)
		return
	}
	defer d.Close()
	ctx := context.Background()
	fmt.Println(d.Size())
	fmt.Println(d.WriteAt(ctx, make([]byte, 512), 512, 0))
	fmt.Println(errors.Is(d.WriteAt(ctx, []byte{1}, 1000, 0), syscall.ENOSPC))
	// Output:
	// 1024
	// <nil>
	// true
}
