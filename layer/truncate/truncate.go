// Package truncate is a layer that changes the size of a device.
//
// # Concepts
//
// A smaller device hides the end of the one below. A larger one has an end
// that is not there: it reads as zeroes, zeroes may be written to it (nothing
// happens), and anything else fails with ENOSPC and changes nothing. That is
// what a user of a format with a fixed unit needs: a device of 1000 bytes
// becomes one of 1024.
//
// The size is [Config].Size, or that of the device below, and is then rounded.
package truncate

import (
	"bytes"
	"context"
	"fmt"
	"math"
	"syscall"

	"nbd.example/nbd/block"
)

// Config says how large the device becomes. The zero value leaves it as it is.
type Config struct {
	Size      int64 // bytes; 0 means that of the device below
	RoundUp   int64 // bytes; if not 0, the size is rounded up to a multiple
	RoundDown int64 // bytes; if not 0, the size is rounded down to a multiple
}

// Check tells what is wrong with c.
func (c Config) Check() error {
	switch {
	case c.Size < 0 || c.RoundUp < 0 || c.RoundDown < 0:
		return fmt.Errorf("truncate: size %d and units %d and %d must not be negative", c.Size, c.RoundUp, c.RoundDown)
	case c.RoundUp != 0 && c.RoundDown != 0:
		return fmt.Errorf("truncate: a size is rounded up or down, not both")
	}
	return nil
}

// size returns the new size, given the one below.
func (c Config) size(below int64) (int64, error) {
	n := c.Size
	if n == 0 {
		n = below
	}
	if c.RoundDown != 0 {
		n -= n % c.RoundDown
	}
	if c.RoundUp != 0 && n%c.RoundUp != 0 {
		if n > math.MaxInt64-c.RoundUp {
			return 0, fmt.Errorf("truncate: %d bytes rounded up to a multiple of %d are too many", n, c.RoundUp)
		}
		n += c.RoundUp - n%c.RoundUp
	}
	return n, nil
}

// Layer returns a layer that changes the size as c says.
func Layer(c Config) block.Layer {
	return func(next *block.Device) (block.Backend, error) {
		if err := c.Check(); err != nil {
			return nil, err
		}
		size, err := c.size(next.Size())
		if err != nil {
			return nil, err
		}
		return &layer{next: next, size: size, real: min(size, next.Size())}, nil
	}
}

type layer struct {
	next *block.Device
	size int64
	real int64 // bytes that the device below has, of ours
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

// Caps implements block.Backend. There is no smallest unit: the new size need
// not be a multiple of the blocks of the device below, which rounds by itself.
func (l *layer) Caps() block.Caps {
	c := l.next.Caps()
	if l.size != c.Size {
		c.Instance = fmt.Sprintf("%s+%d", c.Instance, l.size)
	}
	c.Size = l.size
	c.BlockSize = block.BlockSize{Preferred: c.BlockSize.Preferred}
	if l.size > l.real && c.Extents == block.Emulated {
		c.Extents = block.Native // what is not there is known to be a hole
	}
	return c
}

// inside returns how many of n bytes at off the device below has.
func (l *layer) inside(off, n int64) int64 { return min(n, max(l.real-off, 0)) }

// ReadAt implements block.Backend.
func (l *layer) ReadAt(ctx context.Context, p []byte, off int64) error {
	k := l.inside(off, int64(len(p)))
	clear(p[k:])
	if k == 0 {
		return nil
	}
	return l.next.ReadAt(ctx, p[:k], off)
}

// WriteAt implements block.Writer.
func (l *layer) WriteAt(ctx context.Context, p []byte, off int64, f block.Flags) error {
	k := l.inside(off, int64(len(p)))
	if i := firstData(p[k:]); i >= 0 {
		at := off + k + int64(i)
		return &block.OffsetError{Off: at, Err: fmt.Errorf(
			"truncate: write at %d: only zeroes can be written past the %d bytes of the device below: %w", at, l.real, syscall.ENOSPC)}
	}
	if k == 0 {
		return nil
	}
	return l.next.WriteAt(ctx, p[:k], off, f)
}

var zeroes [4096]byte

// firstData returns the index of the first byte that is not 0, or -1.
func firstData(p []byte) int {
	for at := 0; at < len(p); at += len(zeroes) {
		piece := p[at:min(at+len(zeroes), len(p))]
		if bytes.Equal(piece, zeroes[:len(piece)]) {
			continue
		}
		for i, b := range piece {
			if b != 0 {
				return at + i
			}
		}
	}
	return -1
}

// Flush implements block.Flusher.
func (l *layer) Flush(ctx context.Context) error { return l.next.Flush(ctx) }

// Trim implements block.Trimmer.
func (l *layer) Trim(ctx context.Context, off, n int64, f block.Flags) error {
	if n = l.inside(off, n); n == 0 {
		return nil
	}
	return l.next.Trim(ctx, off, n, f)
}

// WriteZeroes implements block.ZeroWriter. With NoHole, what is not there is
// still not there afterwards: no hole was made that was not one before.
func (l *layer) WriteZeroes(ctx context.Context, off, n int64, f block.Flags) error {
	if n = l.inside(off, n); n == 0 {
		return nil
	}
	return l.next.WriteZeroes(ctx, off, n, f)
}

// Extents implements block.Extenter.
func (l *layer) Extents(ctx context.Context, off, n int64, f block.Flags, add func(block.Extent) bool) error {
	at := off
	if k := l.inside(off, n); k > 0 {
		more := true
		err := l.next.Extents(ctx, off, k, f, func(x block.Extent) bool {
			x.Length = min(x.Length, l.real-at)
			at += x.Length
			more = add(x)
			return more && at < off+k
		})
		if err != nil || !more || f&block.One != 0 || at < l.real {
			return err
		}
	}
	if at < off+n {
		add(block.Extent{Length: l.size - at, State: block.Hole | block.Zero})
	}
	return nil
}

// Cache implements block.Cacher.
func (l *layer) Cache(ctx context.Context, off, n int64) error {
	if n = l.inside(off, n); n == 0 {
		return nil
	}
	return l.next.Cache(ctx, off, n)
}

// Close implements block.Backend.
func (l *layer) Close() error { return l.next.Close() }

// here reports whether the device below has all of n bytes at off.
func (l *layer) here(off, n int64) bool { return off <= l.real && n <= l.real-off }

// TryRead implements block.Direct.
func (l *layer) TryRead(p []byte, off int64) bool {
	return l.here(off, int64(len(p))) && l.next.TryRead(p, off)
}

// TryWrite implements block.Direct.
func (l *layer) TryWrite(p []byte, off int64) bool {
	return l.here(off, int64(len(p))) && l.next.TryWrite(p, off)
}

// Range implements block.Direct.
func (l *layer) Range(off, n int64, onlyData bool) (block.Span, bool) {
	if !l.here(off, n) {
		return block.Span{}, false
	}
	return l.next.Range(off, n, onlyData)
}

// Avoid implements block.Direct. A span is a stretch of a file, which knows
// nothing of layers.
func (l *layer) Avoid(s block.Span) { l.next.Avoid(s) }
