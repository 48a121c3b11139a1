package readonly_test

import (
	"testing"

	"nbd.example/nbd/block"
	"nbd.example/nbd/block/blocktest"
	"nbd.example/nbd/layer/readonly"
)

func TestConformance(t *testing.T) {
	blocktest.RunLayer(t, blocktest.LayerTarget{
		New:         func(testing.TB) block.Layer { return readonly.Layer() },
		Transparent: true,
		Except:      []string{"ReadOnly", "FUA", "Trim", "Zero", "FastZero"},
	})
}
