package pattern_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"testing"

	"nbd.example/nbd/backend/pattern"
	"nbd.example/nbd/block"
	"nbd.example/nbd/block/blocktest"
)

func TestConformance(t *testing.T) {
	blocktest.Run(t, blocktest.Target{
		Open: func(t testing.TB, size int64) (block.Backend, error) {
			return pattern.New(pattern.Config{Size: size})
		},
		Initial: slow,
	})
}

// slow is the definition, byte by byte.
func slow(p []byte, off int64) {
	for i := range p {
		at := uint64(off) + uint64(i)
		p[i] = byte((at &^ 7) >> (56 - at%8*8))
	}
}

func TestFill(t *testing.T) {
	for _, base := range []int64{0, 0x1020304050607000, math.MaxInt64 - 40} {
		for off := base; off < base+10; off++ {
			for n := range 30 {
				got, want := make([]byte, n), make([]byte, n)
				pattern.Fill(got, off)
				slow(want, off)
				if !bytes.Equal(got, want) {
					t.Fatalf("%d bytes at %#x: % x, want % x", n, off, got, want)
				}
			}
		}
	}
}

func TestNegative(t *testing.T) {
	if _, err := pattern.New(pattern.Config{Size: -1}); err == nil {
		t.Error("a disk of -1 bytes")
	}
}

func Example() {
	b, err := pattern.New(pattern.Config{Size: 1 << 40})
	if err != nil {
		panic(err)
	}
	defer b.Close()
	p := make([]byte, 8)
	if err := b.ReadAt(context.Background(), p, 0x123456780); err != nil {
		panic(err)
	}
	fmt.Printf("%#x\n", binary.BigEndian.Uint64(p))
	// Output: 0x123456780
}

func BenchmarkRead(b *testing.B) {
	p := make([]byte, 4096)
	b.SetBytes(int64(len(p)))
	for i := 0; b.Loop(); i++ {
		pattern.Fill(p, int64(i)<<12)
	}
}
