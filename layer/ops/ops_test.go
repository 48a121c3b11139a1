package ops_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	"nbd.example/nbd/backend/memory"
	"nbd.example/nbd/block"
	"nbd.example/nbd/block/blocktest"
	"nbd.example/nbd/layer/ops"
)

func pass(ctx context.Context, o ops.Call) error { return o.Do(ctx, o.Len) }

func TestConformance(t *testing.T) {
	blocktest.RunLayer(t, blocktest.LayerTarget{
		New: func(testing.TB) block.Layer {
			return func(next *block.Device) (block.Backend, error) { return ops.New(next, pass), nil }
		},
		Transparent: true,
	})
}

func TestKinds(t *testing.T) {
	for k, want := range map[ops.Kind]string{0: "", ops.Read: "read", ops.Read | ops.Cache: "read/cache", ops.All: "all", ops.Zero: "zero"} {
		if got := k.String(); got != want {
			t.Errorf("%d: %q, want %q", k, got, want)
		}
		if k == 0 || k == ops.Read|ops.Cache {
			continue
		}
		if got, err := ops.ParseKind(want); got != k || err != nil {
			t.Errorf("%q: %v, %v", want, got, err)
		}
	}
	if _, err := ops.ParseKind("reed"); err == nil {
		t.Error("reed is a kind")
	}
}

// TestAround: every operation comes by, as it was asked for, and can be refused, or done in
// part.
func TestAround(t *testing.T) {
	m, err := memory.New(memory.Config{Size: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	next, err := block.New(m)
	if err != nil {
		t.Fatal(err)
	}
	refusal := errors.New("refused")
	var seen []string
	refuse := false
	d, err := block.New(ops.New(next, func(ctx context.Context, o ops.Call) error {
		seen = append(seen, o.String())
		if refuse {
			return refusal
		}
		return o.Do(ctx, min(o.Len, 512))
	}))
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	ctx := t.Context()
	buf := make([]byte, 1024)
	for i := range buf {
		buf[i] = 'x'
	}
	all := func() []error {
		return []error{
			d.WriteAt(ctx, buf, 4096, 0), d.Flush(ctx), d.ReadAt(ctx, make([]byte, 1024), 4096), d.Trim(ctx, 0, 1024, 0),
			d.WriteZeroes(ctx, 1024, 1024, 0), d.Cache(ctx, 0, 1024),
			d.Extents(ctx, 0, 1024, 0, func(block.Extent) bool { return true }),
		}
	}
	for i, err := range all() {
		if err != nil {
			t.Errorf("operation %d: %v", i, err)
		}
	}
	want := []string{
		"write of 1024 bytes at 4096", "flush", "read of 1024 bytes at 4096", "trim of 1024 bytes at 0",
		"zero of 1024 bytes at 1024", "cache of 1024 bytes at 0", "extents of 1024 bytes at 0",
	}
	if !slices.Equal(seen, want) {
		t.Errorf("seen were\n%q, want\n%q", seen, want)
	}
	got := make([]byte, 1024)
	if err := next.ReadAt(ctx, got, 4096); err != nil || string(got) != string(append(slices.Clone(buf[:512]), make([]byte, 512)...)) {
		t.Errorf("a write of which half was done left %q, %v", got, err)
	}
	refuse = true
	for i, err := range all() {
		if !errors.Is(err, refusal) {
			t.Errorf("operation %d: %v", i, err)
		}
	}
}

func ExampleNew() {
	m, _ := memory.New(memory.Config{Size: 4096})
	next, _ := block.New(m)
	d, _ := block.New(ops.New(next, func(ctx context.Context, o ops.Call) error {
		err := o.Do(ctx, o.Len)
		fmt.Println(o, err)
		return err
	}))
	defer d.Close()
	d.WriteAt(context.Background(), []byte("hello"), 0, 0)
	// Output: write of 5 bytes at 0 <nil>
}
