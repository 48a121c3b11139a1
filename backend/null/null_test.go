package null_test

import (
	"context"
	"math"
	"testing"

	"nbd.example/nbd/backend/null"
	"nbd.example/nbd/block"
	"nbd.example/nbd/block/blocktest"
)

func TestConformance(t *testing.T) {
	blocktest.Run(t, blocktest.Target{
		Open: func(t testing.TB, size int64) (block.Backend, error) {
			return null.New(null.Config{Size: size})
		},
		Forgets: true,
	})
}

// TestHuge uses the ends of the largest disk that there can be.
func TestHuge(t *testing.T) {
	b, err := null.New(null.Config{Size: math.MaxInt64})
	if err != nil {
		t.Fatal(err)
	}
	d, err := block.New(b)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	ctx := context.Background()
	p := []byte{1, 2, 3}
	if err := d.ReadAt(ctx, p, math.MaxInt64-3); err != nil || p[0]|p[1]|p[2] != 0 {
		t.Errorf("read % x at the end, error %v", p, err)
	}
	if err := d.WriteZeroes(ctx, 0, math.MaxInt64, block.FUA|block.FastZero); err != nil {
		t.Errorf("zero everything: %v", err)
	}
	var sum int64
	for _, off := range []int64{0, 5} {
		err = d.Extents(ctx, off, math.MaxInt64-off, 0, func(x block.Extent) bool {
			if x.State != block.Hole|block.Zero {
				t.Errorf("extent %+v, want a hole", x)
			}
			sum += x.Length - (math.MaxInt64 - off)
			return true
		})
		if err != nil || sum != 0 {
			t.Errorf("extents from %d: error %v, %d bytes too many", off, err, sum)
		}
	}
}

func TestNegative(t *testing.T) {
	if _, err := null.New(null.Config{Size: -1}); err == nil {
		t.Error("a disk of -1 bytes")
	}
}
