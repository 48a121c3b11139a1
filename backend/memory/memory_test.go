package memory_test

import (
	"testing"

	"nbd.example/nbd/backend/memory"
	"nbd.example/nbd/block"
	"nbd.example/nbd/block/blocktest"
)

func TestConformance(t *testing.T) {
	blocktest.Run(t, blocktest.Target{
		Open: func(t testing.TB, size int64) (block.Backend, error) {
			return memory.New(memory.Config{Size: size})
		},
	})
}
