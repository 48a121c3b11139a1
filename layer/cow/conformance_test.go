package cow_test

import (
	"fmt"
	"testing"

	"nbd.example/nbd/block"
	"nbd.example/nbd/block/blocktest"
	"nbd.example/nbd/layer/cow"
)

func TestConformance(t *testing.T) {
	for _, sparse := range []bool{false, true} {
		t.Run(fmt.Sprintf("Sparse=%v", sparse), func(t *testing.T) {
			blocktest.RunLayer(t, blocktest.LayerTarget{
				New: func(t testing.TB) block.Layer {
					return cow.Layer(cow.Config{Dir: t.TempDir(), Sparse: sparse})
				},
				Volatile: true,
			})
		})
	}
}
