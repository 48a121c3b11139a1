// Package pattern is a read-only disk on which every place can be told from every
// other: each 8 bytes at a multiple of 8 hold their own offset, as a big-endian
// number. A test that reads it knows at once whether it got the right bytes.
package pattern

import (
	"context"
	"encoding/binary"
	"fmt"

	"nbd.example/nbd/block"
)

// Config describes a disk.
type Config struct {
	// Size of the disk in bytes, 0 to 2^63-1. It need not be a multiple of 8.
	Size int64
}

// Pattern is a disk.
type Pattern struct {
	size int64
}

var (
	_ block.Backend = (*Pattern)(nil)
	_ block.Cacher  = (*Pattern)(nil)
	_ block.Direct  = (*Pattern)(nil)
)

// New makes a disk. The result is a [*Pattern].
func New(c Config) (block.Backend, error) {
	if c.Size < 0 {
		return nil, fmt.Errorf("pattern: size %d is negative", c.Size)
	}
	return &Pattern{size: c.Size}, nil
}

// Fill fills p with what a disk holds from off bytes on.
func Fill(p []byte, off int64) {
	word := uint64(off) &^ 7
	if skip := int(off & 7); skip > 0 {
		var w [8]byte
		binary.BigEndian.PutUint64(w[:], word)
		p = p[copy(p, w[skip:]):]
		word += 8
	}
	for ; len(p) >= 8; word += 8 {
		binary.BigEndian.PutUint64(p, word)
		p = p[8:]
	}
	if len(p) > 0 {
		var w [8]byte
		binary.BigEndian.PutUint64(w[:], word)
		copy(p, w[:])
	}
}

// Caps says that the disk is read-only. All disks of one size are one instance:
// they hold the same bytes for ever.
func (d *Pattern) Caps() block.Caps {
	return block.Caps{Size: d.size, ReadOnly: true, MultiConn: true, Instance: fmt.Sprintf("pattern:%d", d.size)}
}

// ReadAt fills p.
func (d *Pattern) ReadAt(_ context.Context, p []byte, off int64) error {
	Fill(p, off)
	return nil
}

// TryRead fills p.
func (d *Pattern) TryRead(p []byte, off int64) bool {
	Fill(p, off)
	return true
}

// TryWrite refuses: the disk is read-only.
func (d *Pattern) TryWrite([]byte, int64) bool { return false }

// Range offers nothing.
func (d *Pattern) Range(int64, int64, bool) (block.Span, bool) { return block.Span{}, false }

// Avoid has nothing to do: there was no span.
func (d *Pattern) Avoid(block.Span) {}

// Cache has nothing to do.
func (d *Pattern) Cache(context.Context, int64, int64) error { return nil }

// Close has nothing to do.
func (d *Pattern) Close() error { return nil }
