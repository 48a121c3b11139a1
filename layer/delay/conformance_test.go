package delay_test

import (
	"testing"

	"nbd.example/nbd/block"
	"nbd.example/nbd/block/blocktest"
	"nbd.example/nbd/layer/delay"
)

func TestConformance(t *testing.T) {
	blocktest.RunLayer(t, blocktest.LayerTarget{
		New:         func(testing.TB) block.Layer { return delay.Layer(delay.Config{}) },
		Transparent: true,
	})
}
