// Package null is a disk that holds nothing: reads give zeroes, writes are
// accepted and forgotten. It measures what lies in front of it, and fills the
// gaps of what is made of several disks.
package null

import (
	"context"
	"fmt"

	"nbd.example/nbd/block"
)

// Config describes a disk.
type Config struct {
	// Size of the disk in bytes, 0 to 2^63-1.
	Size int64
}

// Null is a disk. It implements every optional interface of package block.
type Null struct {
	size int64
}

var (
	_ block.Backend    = (*Null)(nil)
	_ block.Writer     = (*Null)(nil)
	_ block.Flusher    = (*Null)(nil)
	_ block.Trimmer    = (*Null)(nil)
	_ block.ZeroWriter = (*Null)(nil)
	_ block.Extenter   = (*Null)(nil)
	_ block.Cacher     = (*Null)(nil)
	_ block.Direct     = (*Null)(nil)
)

// New makes a disk. The result is a [*Null].
func New(c Config) (block.Backend, error) {
	if c.Size < 0 {
		return nil, fmt.Errorf("null: size %d is negative", c.Size)
	}
	return &Null{size: c.Size}, nil
}

// Caps says that everything is native. All disks of one size are one instance:
// they hold the same bytes for ever.
func (d *Null) Caps() block.Caps {
	return block.Caps{
		Size: d.size, MultiConn: true, Instance: fmt.Sprintf("null:%d", d.size),
		Flush: block.Native, FreeFlush: true, FUA: block.Native, Trim: block.Native, Zero: block.Native,
		FastZero: block.Native, Extents: block.Native, Cache: block.Native,
	}
}

// ReadAt clears p.
func (d *Null) ReadAt(_ context.Context, p []byte, _ int64) error {
	clear(p)
	return nil
}

// TryRead clears p.
func (d *Null) TryRead(p []byte, _ int64) bool {
	clear(p)
	return true
}

// WriteAt forgets p.
func (d *Null) WriteAt(context.Context, []byte, int64, block.Flags) error { return nil }

// TryWrite forgets p.
func (d *Null) TryWrite([]byte, int64) bool { return true }

// Range offers nothing.
func (d *Null) Range(int64, int64, bool) (block.Span, bool) { return block.Span{}, false }

// Avoid has nothing to do: there was no span.
func (d *Null) Avoid(block.Span) {}

// Flush has nothing to do.
func (d *Null) Flush(context.Context) error { return nil }

// Trim has nothing to do.
func (d *Null) Trim(context.Context, int64, int64, block.Flags) error { return nil }

// WriteZeroes has nothing to do. NoHole is ignored: there is nothing to allocate,
// and no later write can fail for want of it.
func (d *Null) WriteZeroes(context.Context, int64, int64, block.Flags) error { return nil }

// Cache has nothing to do.
func (d *Null) Cache(context.Context, int64, int64) error { return nil }

// Extents says that everything is one hole.
func (d *Null) Extents(_ context.Context, off, _ int64, _ block.Flags, add func(block.Extent) bool) error {
	add(block.Extent{Length: d.size - off, State: block.Hole | block.Zero})
	return nil
}

// Close has nothing to do.
func (d *Null) Close() error { return nil }
