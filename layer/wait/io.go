package wait

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"nbd.example/nbd/block"
)

// base returns the device below, or why there is none. The caller holds life.
func (w *Wait) base() (*block.Device, error) {
	if w.next == nil {
		return nil, fmt.Errorf("wait: only what was written here is known, until the device below is there and merged with: %w", fs.ErrNotExist)
	}
	return w.next, nil
}

// ReadAt implements block.Backend. It needs no lock: bytes move to the diff when
// they are written, and back when the same bytes are in the base.
func (w *Wait) ReadAt(ctx context.Context, p []byte, off int64) error {
	w.life.RLock()
	defer w.life.RUnlock()
	if w.now() == merged {
		return w.next.ReadAt(ctx, p, off)
	}
	for len(p) > 0 {
		set, stop := w.marks.run(off, off+int64(len(p)))
		piece := p[:stop-off]
		if err := w.readPiece(ctx, piece, off, set); err != nil {
			return err
		}
		p, off = p[len(piece):], stop
	}
	return nil
}

func (w *Wait) readPiece(ctx context.Context, p []byte, off int64, inDiff bool) error {
	if inDiff {
		return w.diff.read(p, off)
	}
	next, err := w.base()
	if err != nil {
		return err
	}
	return next.ReadAt(ctx, p, off)
}

// changes takes the locks of a change. The mode stays until the returned function
// is called.
func (w *Wait) changes(off, end int64) (now mode, done func()) {
	w.life.RLock()
	now = w.now()
	switch now {
	case collecting:
		w.edges.lock(off, end)
	case merging:
		w.regions.rlock(off, end)
	}
	return now, func() {
		switch now {
		case collecting:
			w.edges.unlock(off, end)
		case merging:
			w.regions.runlock(off, end)
		}
		w.life.RUnlock()
	}
}

// WriteAt implements block.Writer.
func (w *Wait) WriteAt(ctx context.Context, p []byte, off int64, f block.Flags) error {
	end := off + int64(len(p))
	now, done := w.changes(off, end)
	defer done()
	switch now {
	case merged:
		return w.next.WriteAt(ctx, p, off, f)
	case collecting:
		return w.collect(ctx, p, off)
	}
	return w.whereItIs(off, end, func(at, stop int64, inDiff bool) error {
		piece := p[at-off : stop-off]
		if inDiff {
			return w.diff.write(piece, at)
		}
		return w.next.WriteAt(ctx, piece, at, 0)
	})
}

// whereItIs calls do for each stretch of a range that is in the diff as a whole,
// or in the base. While merging, that is where it is written, so that nothing new
// comes into the diff. The caller holds the regions, so that nothing leaves it.
func (w *Wait) whereItIs(off, end int64, do func(off, end int64, inDiff bool) error) error {
	for off < end {
		inDiff, stop := w.marks.run(off, end)
		if err := do(off, stop, inDiff); err != nil {
			return err
		}
		off = stop
	}
	return nil
}

// collect writes to the diff. The caller holds the edges.
func (w *Wait) collect(ctx context.Context, p []byte, off int64) error {
	end := off + int64(len(p))
	if err := w.complete(ctx, off, end); err != nil {
		return err
	}
	if err := w.diff.write(p, off); err != nil {
		return err
	}
	w.marks.set(off, end)
	return nil
}

// complete copies the rest of those units to the diff that a range only touches.
// They are not marked yet: another write of the same bytes may still fail.
func (w *Wait) complete(ctx context.Context, off, end int64) error {
	first := off / unit * unit
	if first != off {
		if err := w.fetch(ctx, first); err != nil {
			return err
		}
	}
	if last := end / unit * unit; last != end && end != w.size && (last != first || first == off) {
		return w.fetch(ctx, last)
	}
	return nil
}

// fetch copies the unit at off from the base, unless it is in the diff.
func (w *Wait) fetch(ctx context.Context, off int64) error {
	if set, _ := w.marks.run(off, off+1); set {
		return nil
	}
	next, err := w.base()
	if err != nil {
		return fmt.Errorf("wait: write a part of %d bytes at %d: %w", unit, off, err)
	}
	var buf [unit]byte
	p := buf[:min(unit, w.size-off)]
	if err := next.ReadAt(ctx, p, off); err != nil {
		return fmt.Errorf("wait: copy %d bytes from below: %w", len(p), err)
	}
	return w.diff.write(p, off)
}

// Flush implements block.Flusher.
func (w *Wait) Flush(ctx context.Context) error {
	w.life.RLock()
	defer w.life.RUnlock()
	now := w.now()
	if now != merged {
		if err := w.flushDiff(); err != nil {
			return err
		}
	}
	if now == collecting {
		return nil
	}
	return w.next.Flush(ctx)
}

// flushDiff makes stable what is in the diff: first the bytes, then the bits that
// say so.
func (w *Wait) flushDiff() error {
	w.flushing.Lock()
	defer w.flushing.Unlock()
	if w.broken != nil {
		return w.broken
	}
	return w.flushLocked()
}

// syncDiff makes the file of the diff stable. If that fails, nobody knows what the
// file has, and it counts as broken from then on. The caller holds flushing.
func (w *Wait) syncDiff(what string) error {
	if err := w.diff.Sync(); err != nil {
		w.broken = fmt.Errorf("wait: make %s stable: %w", what, err)
	}
	return w.broken
}

func (w *Wait) flushLocked() error {
	const atOnce = 256
	list := w.marks.dirty()
	for {
		some := list[:min(len(list), atOnce)]
		list = list[len(some):]
		taken := w.marks.take(some) // before the sync, which covers what they stand for
		if err := w.syncDiff("the diff"); err != nil {
			return err
		}
		for i := range taken {
			if err := w.diff.writePage(taken[i].i, &taken[i].bits); err != nil {
				w.marks.again(some) // the disk may be full: that passes
				return fmt.Errorf("wait: write the bitmap of the diff: %w", err)
			}
		}
		if len(list) > 0 {
			continue
		}
		if len(some) == 0 {
			return nil
		}
		return w.syncDiff("the bitmap of the diff")
	}
}

// Trim implements block.Trimmer. What is not in the diff stays as it is until the
// merge has begun.
func (w *Wait) Trim(ctx context.Context, off, n int64, f block.Flags) error {
	now, done := w.changes(off, off+n)
	defer done()
	if now == merged {
		return w.trimBase(ctx, off, n, f)
	}
	lo, hi := wholeUnits(off, off+n, w.size)
	return w.whereItIs(lo, hi, func(at, stop int64, inDiff bool) error {
		switch {
		case inDiff && w.diff.punch:
			return w.diff.zero(at, stop-at)
		case !inDiff && now == merging:
			return w.trimBase(ctx, at, stop-at, 0)
		}
		return nil
	})
}

// trimBase trims the base, if it can be.
func (w *Wait) trimBase(ctx context.Context, off, n int64, f block.Flags) error {
	if w.next.Caps().Trim == block.None {
		return nil
	}
	return w.next.Trim(ctx, off, n, f)
}

// wholeUnits returns the whole units of a range. The last one of the device may be
// short.
func wholeUnits(off, end, size int64) (lo, hi int64) {
	lo, hi = (off+unit-1)/unit*unit, end/unit*unit
	if end == size {
		hi = end
	}
	return lo, max(lo, hi)
}

// WriteZeroes implements block.ZeroWriter. What must stay allocated is written by
// the caller.
func (w *Wait) WriteZeroes(ctx context.Context, off, n int64, f block.Flags) error {
	end := off + n
	now, done := w.changes(off, end)
	defer done()
	lo, hi := wholeUnits(off, end, w.size)
	fast := f&block.FastZero != 0
	switch {
	case now == merged && fast && w.next.Caps().FastZero != block.Native:
		return fmt.Errorf("wait: %w: fast zeroes below", errors.ErrUnsupported)
	case now == merged:
		return w.next.WriteZeroes(ctx, off, n, f)
	case f&block.NoHole != 0 || !w.diff.punch || lo >= hi || fast && (now == merging || lo != off || hi != end):
		return fmt.Errorf("wait: %w: zeroes without writing them", errors.ErrUnsupported)
	case now == collecting:
		return w.collectZeroes(ctx, off, lo, hi, end)
	}
	return w.whereItIs(off, end, func(at, stop int64, inDiff bool) error {
		lo, hi := wholeUnits(at, stop, w.size)
		switch {
		case !inDiff:
			return w.next.WriteZeroes(ctx, at, stop-at, 0)
		case lo >= hi:
			return w.diff.write(zeroes[:stop-at], at)
		}
		return errors.Join(w.diff.write(zeroes[:lo-at], at), w.diff.zero(lo, hi-lo), w.diff.write(zeroes[:stop-hi], hi))
	})
}

var zeroes [2 * unit]byte

// collectZeroes makes whole units from lo to hi holes of the diff, and writes
// what is around them. The caller holds the edges.
func (w *Wait) collectZeroes(ctx context.Context, off, lo, hi, end int64) error {
	if off < lo {
		if err := w.collect(ctx, zeroes[:lo-off], off); err != nil {
			return err
		}
	}
	if hi < end {
		if err := w.collect(ctx, zeroes[:end-hi], hi); err != nil {
			return err
		}
	}
	if err := w.diff.zero(lo, hi-lo); err != nil {
		return err
	}
	w.marks.set(lo, hi)
	return nil
}

// Extents implements block.Extenter.
func (w *Wait) Extents(ctx context.Context, off, n int64, f block.Flags, add func(block.Extent) bool) error {
	w.life.RLock()
	defer w.life.RUnlock()
	done, told := false, 0
	for end := off + n; off < end && !done && (f&block.One == 0 || told == 0); {
		set, stop := false, end
		if w.now() != merged {
			set, stop = w.marks.run(off, end)
		}
		x := block.Extent{Length: stop - off, Depth: 1}
		if !set {
			x.Depth = 2
		}
		if set || w.next == nil || w.next.Caps().Extents == block.None {
			done = !add(x)
			told++
			off = stop
			continue
		}
		from := off
		err := w.next.Extents(ctx, off, stop-off, f, func(x block.Extent) bool {
			x = w.fromBelow(x, stop-off)
			off += x.Length
			told++
			done = !add(x)
			return !done && off < stop
		})
		if err == nil && off == from {
			err = fmt.Errorf("wait: the device below tells nothing of %d bytes at %d", stop-off, off)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// fromBelow returns an extent of the base as one of this device.
func (w *Wait) fromBelow(x block.Extent, limit int64) block.Extent {
	x.Length = min(x.Length, limit)
	switch {
	case !w.next.Caps().Depth && x.State&block.Hole == 0:
		x.Depth = 2
	case !w.next.Caps().Depth:
		x.Depth = 0
	case x.Depth > 0:
		x.Depth++
	}
	return x
}

// Cache implements block.Cacher. The diff was written a moment ago; only the base
// may be far.
func (w *Wait) Cache(ctx context.Context, off, n int64) error {
	w.life.RLock()
	defer w.life.RUnlock()
	if w.next == nil {
		return nil
	}
	return w.next.Cache(ctx, off, n)
}

// direct returns the base once it is all there is. It stays so.
func (w *Wait) direct() *block.Device {
	if w.now() != merged {
		return nil
	}
	return w.next
}

// TryRead implements block.Direct.
func (w *Wait) TryRead(p []byte, off int64) bool {
	d := w.direct()
	return d != nil && d.TryRead(p, off)
}

// TryWrite implements block.Direct.
func (w *Wait) TryWrite(p []byte, off int64) bool {
	d := w.direct()
	return d != nil && d.TryWrite(p, off)
}

// Range implements block.Direct.
func (w *Wait) Range(off, n int64, onlyData bool) (block.Span, bool) {
	if d := w.direct(); d != nil {
		return d.Range(off, n, onlyData)
	}
	return block.Span{}, false
}

// Avoid implements block.Direct.
func (w *Wait) Avoid(s block.Span) {
	if d := w.direct(); d != nil {
		d.Avoid(s)
	}
}
