package cow

import (
	"context"
	"fmt"

	"nbd.example/nbd/block"
)

// Extents implements block.Extenter. It takes no locks: what it tells of a block
// that is being changed is old or new.
func (l *layer) Extents(ctx context.Context, off, n int64, f block.Flags, add func(block.Extent) bool) error {
	m := merger{add: add}
	for end := off + n; off < end && !m.done; {
		v, stop := l.run(off, end)
		switch {
		case v == isZero:
			m.next(block.Extent{Length: stop - off, State: block.Hole | block.Zero, Depth: 1})
		case v >= firstSlot:
			m.next(block.Extent{Length: stop - off, Depth: 1})
		case l.below.Extents == block.None:
			m.next(block.Extent{Length: stop - off, Depth: 2})
		default:
			reached, err := l.baseExtents(ctx, off, stop, f, &m)
			if err != nil {
				return err
			}
			stop = reached
		}
		if f&block.One != 0 && m.told > 0 {
			return nil
		}
		off = stop
	}
	m.flush()
	return nil
}

// baseExtents tells what the base has from off to end, and how far it got.
func (l *layer) baseExtents(ctx context.Context, off, end int64, f block.Flags, m *merger) (int64, error) {
	at := off
	err := l.next.Extents(ctx, off, end-off, f, func(x block.Extent) bool {
		x.Length = min(x.Length, end-at)
		at += x.Length
		switch {
		case !l.below.Depth && x.State&block.Hole == 0:
			x.Depth = 2
		case !l.below.Depth:
			x.Depth = 0
		case x.Depth > 0:
			x.Depth++
		}
		m.next(x)
		return !m.done && at < end
	})
	if err == nil && at == off {
		err = fmt.Errorf("cow: the device below tells nothing of %d bytes at %d", end-off, off)
	}
	return at, err
}

// merger joins neighbours that are alike, so that a diff whose blocks lie
// scattered does not look so.
type merger struct {
	add     func(block.Extent) bool
	pending block.Extent // a Length of 0 means none
	told    int          // extents that add has seen
	done    bool         // add wants no more
}

func (m *merger) next(x block.Extent) {
	if m.pending.Length > 0 && m.pending.State == x.State && m.pending.Depth == x.Depth {
		m.pending.Length += x.Length
		return
	}
	m.flush()
	m.pending = x
}

func (m *merger) flush() {
	if m.pending.Length > 0 && !m.done {
		m.told++
		m.done = !m.add(m.pending)
	}
	m.pending = block.Extent{}
}

// Cache implements block.Cacher. The diff was written a moment ago; only the
// base may be far.
func (l *layer) Cache(ctx context.Context, off, n int64) error {
	for end := off + n; off < end; {
		v, stop := l.run(off, end)
		if v == inBase {
			if err := l.next.Cache(ctx, off, stop-off); err != nil {
				return err
			}
		}
		off = stop
	}
	return nil
}
