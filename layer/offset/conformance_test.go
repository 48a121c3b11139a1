package offset_test

import (
	"fmt"
	"testing"

	"nbd.example/nbd/block"
	"nbd.example/nbd/block/blocktest"
	"nbd.example/nbd/layer/offset"
)

func TestConformance(t *testing.T) {
	for _, off := range []int64{0, 512} {
		t.Run(fmt.Sprint(off), func(t *testing.T) {
			blocktest.RunLayer(t, blocktest.LayerTarget{
				New:         func(testing.TB) block.Layer { return offset.Layer(offset.Config{Offset: off}) },
				View:        func(base []byte) []byte { return base[off:] },
				Below:       func(size int64) int64 { return size + off },
				Transparent: off == 0,
				Steps:       300,
			})
		})
	}
}

// TestOdd is for an offset that divides sectors. A power cut would show that one
// sector of the device is two of the disk, so it is left out.
func TestOdd(t *testing.T) {
	const off = 1001
	blocktest.Run(t, blocktest.Target{
		Open: func(t testing.TB, size int64) (block.Backend, error) {
			caps := blocktest.FullCaps((size + off + 4095) &^ 4095)
			caps.BlockSize.Minimum = 4096
			next, err := block.New(blocktest.NewDisk(t, caps).Open())
			if err != nil {
				return nil, err
			}
			b, err := offset.Layer(offset.Config{Offset: off, Size: size})(next)
			if err != nil {
				next.Close()
			}
			return b, err
		},
	})
}
