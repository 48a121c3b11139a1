// Package readonly is a layer through which a device can be read and not
// changed.
//
// # Concepts
//
// The device below may well be writable, and may be changed by others while it
// is read here. The layer has no method that changes anything, so there is
// nothing that a mistake above it could reach. Bytes pass through untouched:
// that is why it may keep the fast path for reads ([block.Direct]), and why it
// keeps the name of the contents ([block.Caps].Instance).
//
// A flush is passed on: it makes stable what others have written below, and it
// tells when that failed.
package readonly

import (
	"context"

	"nbd.example/nbd/block"
)

// Layer returns a layer that refuses every change.
func Layer() block.Layer {
	return func(next *block.Device) (block.Backend, error) {
		return &layer{next: next}, nil
	}
}

type layer struct {
	next *block.Device
}

var (
	_ block.Backend  = (*layer)(nil)
	_ block.Flusher  = (*layer)(nil)
	_ block.Extenter = (*layer)(nil)
	_ block.Cacher   = (*layer)(nil)
	_ block.Grower   = (*layer)(nil)
	_ block.Direct   = (*layer)(nil)
)

// Caps implements block.Backend.
func (l *layer) Caps() block.Caps {
	c := l.next.Caps()
	c.ReadOnly = true
	c.FUA, c.Trim, c.Zero, c.FastZero = block.None, block.None, block.None, block.None
	return c
}

// ReadAt implements block.Backend.
func (l *layer) ReadAt(ctx context.Context, p []byte, off int64) error {
	return l.next.ReadAt(ctx, p, off)
}

// Flush implements block.Flusher.
func (l *layer) Flush(ctx context.Context) error { return l.next.Flush(ctx) }

// Extents implements block.Extenter.
func (l *layer) Extents(ctx context.Context, off, n int64, f block.Flags, add func(block.Extent) bool) error {
	return l.next.Extents(ctx, off, n, f, add)
}

// Cache implements block.Cacher.
func (l *layer) Cache(ctx context.Context, off, n int64) error { return l.next.Cache(ctx, off, n) }

// Remeasure implements block.Grower.
func (l *layer) Remeasure() (int64, error) { return l.next.Grow(1) }

// Close implements block.Backend.
func (l *layer) Close() error { return l.next.Close() }

// TryRead implements block.Direct.
func (l *layer) TryRead(p []byte, off int64) bool { return l.next.TryRead(p, off) }

// TryWrite implements block.Direct: there is nothing to try.
func (l *layer) TryWrite([]byte, int64) bool { return false }

// Range implements block.Direct.
func (l *layer) Range(off, n int64, onlyData bool) (block.Span, bool) {
	return l.next.Range(off, n, onlyData)
}

// Avoid implements block.Direct. A span is a stretch of a file, which knows
// nothing of layers.
func (l *layer) Avoid(s block.Span) { l.next.Avoid(s) }
