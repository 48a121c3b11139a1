// Package offset is a layer that shows a stretch of a device as a device of its
// own: one partition of a disk, say.
//
// # Concepts
//
// Byte 0 of the new device is byte [Config].Offset of the one below. Nothing
// outside the stretch can be reached. Errors that say where something failed
// ([block.OffsetError]) are moved likewise.
//
// Neither the offset nor the size need be a multiple of anything. Where the
// device below wants alignment ([block.Caps].BlockSize), it is the device below
// that reads, modifies and writes its blocks, so that what lies outside the
// stretch in the same block survives; a stretch that begins in the middle of a
// block is correct, and slow at its edges.
package offset

import (
	"context"
	"errors"
	"fmt"

	"nbd.example/nbd/block"
)

// Config says which stretch is shown. The zero value shows all.
type Config struct {
	Offset int64 // bytes from the start of the device below
	Size   int64 // bytes; 0 means all that is left after Offset
}

// Layer returns a layer that shows the stretch that c describes. Putting it over
// a device that does not hold the whole stretch is an error.
func Layer(c Config) block.Layer {
	return func(next *block.Device) (block.Backend, error) {
		have := next.Size()
		switch {
		case c.Offset < 0 || c.Size < 0:
			return nil, fmt.Errorf("offset: offset %d and size %d must not be negative", c.Offset, c.Size)
		case c.Offset > have:
			return nil, fmt.Errorf("offset: offset %d is past the end of the device below, which has %d bytes", c.Offset, have)
		case c.Size > have-c.Offset:
			return nil, fmt.Errorf("offset: %d bytes at %d reach past the end of the device below, which has %d bytes", c.Size, c.Offset, have)
		}
		l := &layer{next: next, off: c.Offset, size: c.Size}
		if c.Size == 0 {
			l.size = have - c.Offset
		}
		return l, nil
	}
}

type layer struct {
	next      *block.Device
	off, size int64
}

var (
	_ block.Backend    = (*layer)(nil)
	_ block.Writer     = (*layer)(nil)
	_ block.Flusher    = (*layer)(nil)
	_ block.Trimmer    = (*layer)(nil)
	_ block.ZeroWriter = (*layer)(nil)
	_ block.Extenter   = (*layer)(nil)
	_ block.Cacher     = (*layer)(nil)
	_ block.Direct     = (*layer)(nil)
)

// Caps implements block.Backend. There is no smallest or largest unit: the device
// below cuts and rounds by itself, which it must do anyhow, because the offset
// need not be a multiple of its blocks.
func (l *layer) Caps() block.Caps {
	c := l.next.Caps()
	if l.off != 0 || l.size != c.Size {
		c.Instance = fmt.Sprintf("%s@%d+%d", c.Instance, l.off, l.size)
	}
	c.Size = l.size
	c.BlockSize = block.BlockSize{Preferred: c.BlockSize.Preferred}
	return c
}

// here moves the place that an error names.
func (l *layer) here(err error) error {
	var at *block.OffsetError
	if err == nil || !errors.As(err, &at) {
		return err
	}
	// A block that is only partly inside may have failed outside.
	return &block.OffsetError{Off: min(max(at.Off-l.off, 0), max(l.size-1, 0)), Err: err}
}

// ReadAt implements block.Backend.
func (l *layer) ReadAt(ctx context.Context, p []byte, off int64) error {
	return l.here(l.next.ReadAt(ctx, p, l.off+off))
}

// WriteAt implements block.Writer.
func (l *layer) WriteAt(ctx context.Context, p []byte, off int64, f block.Flags) error {
	return l.here(l.next.WriteAt(ctx, p, l.off+off, f))
}

// Flush implements block.Flusher.
func (l *layer) Flush(ctx context.Context) error { return l.here(l.next.Flush(ctx)) }

// Trim implements block.Trimmer.
func (l *layer) Trim(ctx context.Context, off, n int64, f block.Flags) error {
	return l.here(l.next.Trim(ctx, l.off+off, n, f))
}

// WriteZeroes implements block.ZeroWriter.
func (l *layer) WriteZeroes(ctx context.Context, off, n int64, f block.Flags) error {
	return l.here(l.next.WriteZeroes(ctx, l.off+off, n, f))
}

// Extents implements block.Extenter. The last extent may reach beyond the
// stretch; the device above cuts it.
func (l *layer) Extents(ctx context.Context, off, n int64, f block.Flags, add func(block.Extent) bool) error {
	return l.here(l.next.Extents(ctx, l.off+off, n, f, add))
}

// Cache implements block.Cacher.
func (l *layer) Cache(ctx context.Context, off, n int64) error {
	return l.here(l.next.Cache(ctx, l.off+off, n))
}

// Close implements block.Backend.
func (l *layer) Close() error { return l.next.Close() }

// TryRead implements block.Direct.
func (l *layer) TryRead(p []byte, off int64) bool { return l.next.TryRead(p, l.off+off) }

// TryWrite implements block.Direct.
func (l *layer) TryWrite(p []byte, off int64) bool { return l.next.TryWrite(p, l.off+off) }

// Range implements block.Direct.
func (l *layer) Range(off, n int64, onlyData bool) (block.Span, bool) {
	return l.next.Range(l.off+off, n, onlyData)
}

// Avoid implements block.Direct. A span is a stretch of a file, which knows
// nothing of layers.
func (l *layer) Avoid(s block.Span) { l.next.Avoid(s) }
