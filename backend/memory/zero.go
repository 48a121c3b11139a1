package memory

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"nbd.example/nbd/block"
)

// WriteZeroes gives memory back, or with NoHole fills it. NoHole with FastZero is
// refused: to take memory and clear it is what a write does.
func (m *Memory) WriteZeroes(ctx context.Context, off, n int64, f block.Flags) error {
	if f&block.NoHole == 0 {
		return m.release(ctx, off, n)
	}
	if f&block.FastZero != 0 {
		return fmt.Errorf("memory: fast zeroes that take memory: %w", errors.ErrUnsupported)
	}
	for n > 0 {
		index, at, k := piece(off, n)
		l := m.lock(index)
		l.Lock()
		c, err := m.touch(index)
		if err != nil {
			l.Unlock()
			return &block.OffsetError{Off: off, Err: err}
		}
		clear(c[at : at+k])
		l.Unlock()
		if err := ctx.Err(); err != nil {
			return err
		}
		off, n = off+k, n-k
	}
	return nil
}

// release makes a range read as zeroes and gives back the chunks that then hold
// nothing else.
func (m *Memory) release(ctx context.Context, off, n int64) error {
	for end := off + n; off < end; {
		index, at, k := piece(off, end-off)
		s, next := m.table.find(index)
		if s != nil && s.Load() != nil {
			m.releaseChunk(s, index, at, k)
		}
		off = min(next<<chunkBits, end)
		if next == index+1 {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	return nil
}

var zeroChunk chunk

func (m *Memory) releaseChunk(s *slot, index, at, n int64) {
	l := m.lock(index)
	l.Lock()
	defer l.Unlock()
	c := s.Load()
	if c == nil {
		return
	}
	if n < ChunkSize {
		clear(c[at : at+n])
		// A file system trims in small pieces; the last one frees the chunk. The
		// comparison ends at the first byte that is not zero.
		if !bytes.Equal(c[:], zeroChunk[:]) {
			return
		}
	}
	s.Store(nil)
	m.used.Add(-1)
}

// Extents tells which chunks take memory. The others are holes and zero.
func (m *Memory) Extents(ctx context.Context, off, n int64, f block.Flags, add func(block.Extent) bool) error {
	end := min(off+n, m.size)
	for off < end {
		x, err := m.extent(ctx, off, end)
		if err != nil {
			return err
		}
		if !add(x) || f&block.One != 0 {
			return nil
		}
		off += x.Length
	}
	return nil
}

// extent returns the one that begins at off. It ends at the first change, or at
// the first border of chunks that is not before end.
func (m *Memory) extent(ctx context.Context, off, end int64) (block.Extent, error) {
	var x block.Extent
	for at := off; at < end; at = off + x.Length {
		index := at >> chunkBits
		s, next := m.table.find(index)
		data := s != nil && s.Load() != nil
		switch {
		case at > off && data != (x.State == 0):
			return x, nil
		case data:
			x.Depth = 1
		default:
			x.State = block.Hole | block.Zero
		}
		x.Length = min(next<<chunkBits, m.size) - off
		if next != index+1 { // many chunks at once: so long a walk can be given up
			if err := ctx.Err(); err != nil {
				return x, err
			}
		}
	}
	return x, nil
}
