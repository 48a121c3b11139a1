package blocktest

import (
	"testing"

	"nbd.example/nbd/block"
)

// diskTarget is a disk of its own, as a target.
func diskTarget(caps func(size int64) block.Caps, open func(*Disk) block.Backend) Target {
	var d *Disk
	x := Target{
		Open: func(t testing.TB, size int64) (block.Backend, error) {
			d = NewDisk(t, caps(size))
			return open(d), nil
		},
		Reopen:   func(testing.TB) (block.Backend, error) { return open(d), nil },
		Cut:      func(testing.TB) { d.Cut() },
		SizeUnit: max(caps(0).BlockSize.Minimum, 1),
	}
	return x
}

func TestDisk(t *testing.T) {
	for _, k := range diskKinds {
		t.Run(k.name, func(t *testing.T) { Run(t, diskTarget(k.caps, k.open)) })
	}
	t.Run("LargeBlocks", func(t *testing.T) {
		x := diskTarget(func(size int64) block.Caps {
			c := FullCaps(size)
			c.BlockSize = block.BlockSize{Minimum: 65536, Maximum: 65536}
			c.FUA = block.Emulated
			return c
		}, (*Disk).Open)
		x.Steps = 400
		Run(t, x)
	})
}
