package blocktest

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"

	"nbd.example/nbd/block"
)

// model is what a device must hold.
type model struct {
	data      []byte
	undefined []bool // trimmed and not written since
	forgets   bool
}

func newModel(x Target, size int64) *model {
	m := &model{data: make([]byte, size), undefined: make([]bool, size), forgets: x.Forgets}
	if x.Initial != nil {
		x.Initial(m.data, 0)
	}
	return m
}

func (m *model) write(p []byte, off int64) {
	if m.forgets {
		return
	}
	copy(m.data[off:], p)
	clear(m.undefined[off : off+int64(len(p))])
}

func (m *model) zero(off, n int64) {
	if m.forgets {
		return
	}
	clear(m.data[off : off+n])
	clear(m.undefined[off : off+n])
}

func (m *model) forget(off, n int64) {
	if m.forgets {
		return
	}
	for part := m.undefined[off : off+n]; len(part) > 0; {
		part = part[copy(part, allTrue[:]):]
	}
}

var allTrue = [4096]bool(slices.Repeat([]bool{true}, 4096))

// compare says where p differs from what must be at off.
func (m *model) compare(p []byte, off int64) error {
	// Whole stretches first: the race detector makes every single byte dear.
	for i := 0; i < len(p); i += Sector {
		end := min(i+Sector, len(p))
		at := off + int64(i)
		if bytes.Equal(p[i:end], m.data[at:off+int64(end)]) {
			continue
		}
		for k, b := range p[i:end] {
			at := at + int64(k)
			if b != m.data[at] && !m.undefined[at] {
				return fmt.Errorf("byte %d is %#02x, want %#02x (seen in %d bytes at %d)", at, b, m.data[at], len(p), off)
			}
		}
	}
	return nil
}

// check reads from d and compares.
func (m *model) check(ctx context.Context, d *block.Device, off, n int64) error {
	p := junk(n)
	if err := d.ReadAt(ctx, p, off); err != nil {
		return fmt.Errorf("read %d bytes at %d: %w", n, off, err)
	}
	return m.compare(p, off)
}

// checkAll compares the whole device.
func (m *model) checkAll(ctx context.Context, d *block.Device) error {
	const piece = 256 << 10
	for off := int64(0); off < int64(len(m.data)); off += piece {
		if err := m.check(ctx, d, off, min(piece, int64(len(m.data))-off)); err != nil {
			return err
		}
	}
	return nil
}

// junk returns a buffer that no device has filled.
func junk(n int64) []byte {
	return bytes.Repeat([]byte{0xa5}, int(n))
}

// noise returns n random bytes, or zeroes now and then.
func noise(rnd *rand.Rand, n int64) []byte {
	p := make([]byte, n)
	if rnd.IntN(16) == 0 {
		return p
	}
	var seed [32]byte
	for i := 0; i < len(seed); i += 8 {
		binary.LittleEndian.PutUint64(seed[i:], rnd.Uint64())
	}
	rand.NewChaCha8(seed).Read(p)
	return p
}

// pick returns a range inside size bytes, at least 1 long if size is: small and
// large, aligned and not, at the end and at borders of all kinds.
func pick(rnd *rand.Rand, size int64) (off, n int64) {
	if size == 0 {
		return 0, 0
	}
	longest := []int64{1, 16, 512, 5000, 70_000, size}[rnd.IntN(6)]
	n = 1 + rnd.Int64N(min(longest, size))
	off = rnd.Int64N(size - n + 1)
	unit := []int64{1, 1, 512, 4096, 32 << 10, 64 << 10}[rnd.IntN(6)]
	off -= off % unit
	switch rnd.IntN(8) {
	case 0: // at the end
		off = size - n
	case 1: // across a border
		off = max(0, off-rnd.Int64N(8))
	case 2, 3, 4: // whole units
		if up := (n + unit - 1) / unit * unit; up <= size-off {
			n = up
		}
	}
	return off, n
}
