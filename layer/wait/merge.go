package wait

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"runtime/debug"

	"nbd.example/nbd/block"
)

// Batches of a merge: it makes the base stable once for each. Writers of a batch
// wait for it.
const (
	batchBytes = 8 << 20 // a page more, at most
	batchPages = 32
	pieceSize  = 1 << 20 // what is copied at once
)

// errClosed ends a merge whose device is closed.
var errClosed = errors.New("the device was closed")

// Merge merges the diff into the base, and returns when all is done: then
// everything that was written before is stable in the base, and the diff is
// gone. Clients go on meanwhile. If it fails, or ctx ends, nothing is lost, and it can
// be called again. It does nothing if the device has merged.
func (w *Wait) Merge(ctx context.Context) error {
	w.merge.Lock()
	defer w.merge.Unlock()
	if w.now() == merged {
		return nil
	}
	err := w.mergeLocked(ctx)
	w.failed.Store(&err)
	return err
}

// mergeLocked is Merge. A panic in the device below ends the merge, and not the program,
// which has clients.
func (w *Wait) mergeLocked(ctx context.Context) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("wait: panic while merging: %v\n%s", v, debug.Stack())
		}
	}()
	if err := w.ending(ctx); err != nil {
		return err
	}
	if err := w.findBase(ctx); err != nil {
		return err
	}
	if w.now() == collecting {
		if err := w.flushDiff(); err != nil {
			return err
		}
		if err := w.diff.begin(); err != nil {
			return fmt.Errorf("wait: note in the diff that the merge begins: %w", err)
		}
		w.turn(merging)
	}
	buf := make([]byte, pieceSize)
	for list := w.marks.list(); len(list) > 0; {
		if err := w.ending(ctx); err != nil {
			return err
		}
		batch := w.batch(list)
		if err := w.mergeBatch(ctx, batch, buf); err != nil {
			return err
		}
		list = list[len(batch):]
	}
	// The last batch may have been followed by writes to the base, and there may
	// have been none.
	if err := w.flushBase(ctx); err != nil {
		return err
	}
	w.turn(merged)
	if err := w.diff.Remove(); err != nil {
		return fmt.Errorf("wait: all is merged, but the diff cannot be removed: %w", err)
	}
	return nil
}

// ending tells why the merge should end here.
func (w *Wait) ending(ctx context.Context) error {
	select {
	case <-w.closing:
		return fmt.Errorf("wait: merge: %w", errClosed)
	default:
		return ctx.Err()
	}
}

// turn changes the mode, when no operation is under way.
func (w *Wait) turn(m mode) {
	w.life.Lock()
	defer w.life.Unlock()
	w.mode.Store(uint32(m))
}

// findBase opens the base if it was not there yet, and looks whether it will do.
func (w *Wait) findBase(ctx context.Context) error {
	if w.next == nil {
		next, err := w.late(ctx)
		if err != nil {
			return fmt.Errorf("wait: open the device below, to merge with it: %w", err)
		}
		if err := enough(next, w.size); err != nil {
			return errors.Join(err, next.Close())
		}
		w.life.Lock()
		w.next = next
		w.life.Unlock()
	}
	switch c := w.next.Caps(); {
	case c.ReadOnly:
		return fmt.Errorf("wait: merge: the device below: %w", block.ErrReadOnly)
	case c.Flush == block.None && w.caps.Flush != block.None:
		return fmt.Errorf("wait: merge: the device below cannot flush, which clients were promised: %w", errors.ErrUnsupported)
	}
	return nil
}

// batch returns how much of a list of pages is merged at once.
func (w *Wait) batch(list []int64) []int64 {
	n := int64(0)
	for k, i := range list {
		if k == batchPages || k > 0 && n >= batchBytes {
			return list[:k]
		}
		n += w.marks.count(i, w.size)
	}
	return list
}

// mergeBatch merges pages: what they stand for is copied, made stable, and then
// forgotten in the diff.
func (w *Wait) mergeBatch(ctx context.Context, list []int64, buf []byte) error {
	lo, hi := list[0]*stretch, min((list[len(list)-1]+1)*stretch, w.size)
	w.regions.lock(lo, hi)
	defer w.regions.unlock(lo, hi)
	for _, i := range list {
		if err := w.copyPage(ctx, i, buf); err != nil {
			return err
		}
	}
	if err := w.flushBase(ctx); err != nil {
		return err
	}
	// A flush of the diff that has taken the old bits must not write them after
	// this.
	w.flushing.Lock()
	defer w.flushing.Unlock()
	if w.broken != nil {
		return w.broken
	}
	if err := w.forget(list); err != nil {
		return err
	}
	w.marks.drop(list)
	return nil
}

// forget clears pages of the bitmap, stable. If it fails, none or all or some are
// cleared: whoever opens the diff next finds the same bytes either way.
func (w *Wait) forget(list []int64) error {
	w.marks.again(list) // until they are dropped, a flush must write them as they are
	for _, i := range list {
		if err := w.diff.writePage(i, new([pageSize]byte)); err != nil {
			return fmt.Errorf("wait: clear the bitmap of the diff: %w", err)
		}
	}
	return w.syncDiff("the bitmap of the diff")
}

func (w *Wait) flushBase(ctx context.Context) error {
	if w.next.Caps().Flush == block.None {
		return nil
	}
	if err := w.next.Flush(ctx); err != nil {
		return fmt.Errorf("wait: make the merged bytes stable: %w", err)
	}
	return nil
}

// copyPage copies what a page stands for. The regions are locked.
func (w *Wait) copyPage(ctx context.Context, i int64, buf []byte) error {
	end := min((i+1)*stretch, w.size)
	for off := i * stretch; off < end; {
		set, stop := w.marks.run(off, min(end, off+int64(len(buf))))
		if set {
			if err := w.copyPiece(ctx, buf[:stop-off], off); err != nil {
				return err
			}
		}
		off = stop
	}
	return nil
}

// copyPiece copies bytes that are in the diff. Long stretches of zeroes, which may be
// a hole there, may become one in the base.
func (w *Wait) copyPiece(ctx context.Context, p []byte, off int64) error {
	if err := w.diff.read(p, off); err != nil {
		return err
	}
	for len(p) > 0 {
		zero, n := stretchOf(p)
		var err error
		if zero {
			err = w.next.WriteZeroes(ctx, off, int64(n), 0)
		} else {
			err = w.next.WriteAt(ctx, p[:n], off, 0)
		}
		if err != nil {
			return fmt.Errorf("wait: merge %d bytes at %d: %w", n, off, err)
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// grain is in what units zeroes are looked for.
const grain = 64 << 10

// stretchOf tells whether p begins with a grain of zeroes, and up to where it goes on
// like that.
func stretchOf(p []byte) (zero bool, n int) {
	for n < len(p) {
		g := p[n:min(n+grain, len(p))]
		here := bytes.Count(g, []byte{0}) == len(g)
		if n == 0 {
			zero = here
		} else if here != zero {
			break
		}
		n += len(g)
	}
	return zero, n
}
