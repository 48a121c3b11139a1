package truncate_test

import (
	"testing"

	"nbd.example/nbd/block"
	"nbd.example/nbd/block/blocktest"
	"nbd.example/nbd/layer/truncate"
)

func TestConformance(t *testing.T) {
	t.Run("Same", func(t *testing.T) {
		blocktest.RunLayer(t, blocktest.LayerTarget{
			New:         func(testing.TB) block.Layer { return truncate.Layer(truncate.Config{}) },
			Transparent: true,
		})
	})
	t.Run("Smaller", func(t *testing.T) {
		blocktest.RunLayer(t, blocktest.LayerTarget{
			New:  func(testing.TB) block.Layer { return truncate.Layer(truncate.Config{RoundDown: 1000}) },
			View: func(base []byte) []byte { return base[:len(base)/1000*1000] },
		})
	})
}
