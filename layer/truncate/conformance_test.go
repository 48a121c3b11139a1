package truncate_test

import (
	"bytes"
	"testing"

	"nbd.example/nbd/block"
	"nbd.example/nbd/block/blocktest"
	"nbd.example/nbd/layer/readonly"
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

// TestLargerConformance reads a device with an end that is not there. Writing
// to it has rules of its own, which TestLarger tests.
func TestLargerConformance(t *testing.T) {
	var base []byte
	blocktest.Run(t, blocktest.Target{
		Open: func(t testing.TB, size int64) (block.Backend, error) {
			disk := blocktest.NewDisk(t, blocktest.FullCaps(size/3*2))
			disk.Load(bytes.Repeat([]byte{7}, int(size/3)), 0)
			base = append(disk.Contents(), make([]byte, size-size/3*2)...)
			next, err := block.Stack(disk.Open(), readonly.Layer())
			if err != nil {
				return nil, err
			}
			return truncate.Layer(truncate.Config{Size: size})(next)
		},
		Initial: func(p []byte, off int64) { copy(p, base[off:]) },
	})
}
