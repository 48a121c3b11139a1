package blocktest

import (
	"errors"
	"fmt"
	"math/rand/v2"

	"nbd.example/nbd/block"
)

// checkDirect compares the fast path with the model wherever it says yes.
func checkDirect(r *run) error {
	d, m, err := r.openModel()
	if err != nil {
		return err
	}
	if !d.HasDirect() {
		return skip("the device has no fast path")
	}
	s := seed()
	r.t.Logf("BLOCKTEST_SEED=%d", s)
	rnd := newRand(s)
	for i := range r.x.Steps {
		off, n := pick(rnd, d.Size())
		if err := tryDirect(r, d, m, rnd, off, n); err != nil {
			return fmt.Errorf("step %d with BLOCKTEST_SEED=%d: %w", i, s, err)
		}
	}
	return m.checkAll(r.ctx, d)
}

func tryDirect(r *run, d *block.Device, m *model, rnd *rand.Rand, off, n int64) error {
	switch rnd.IntN(4) {
	case 0:
		p := junk(n)
		if d.TryRead(p, off) {
			if err := m.compare(p, off); err != nil {
				return fmt.Errorf("TryRead: %w", err)
			}
		}
	case 1:
		p := noise(rnd, n)
		switch {
		case d.TryWrite(p, off):
			if d.Caps().ReadOnly {
				return fmt.Errorf("TryWrite of %d bytes at %d of a read-only device succeeded", n, off)
			}
		case d.Caps().ReadOnly:
		default: // any part may have been written
			if err := d.WriteAt(r.ctx, p, off, 0); err != nil {
				return err
			}
		}
		if !d.Caps().ReadOnly {
			m.write(p, off)
		}
	case 2:
		return trySpan(r, d, m, off, n, rnd.IntN(2) == 0)
	case 3:
		if d.Caps().ReadOnly {
			break
		}
		p := noise(rnd, n)
		if err := d.WriteAt(r.ctx, p, off, 0); err != nil {
			return err
		}
		m.write(p, off)
	}
	return m.check(r.ctx, d, off, n)
}

// trySpan looks at the bytes of a span, by its file.
func trySpan(r *run, d *block.Device, m *model, off, n int64, onlyData bool) error {
	s, ok := d.Range(off, n, onlyData)
	if !ok {
		return nil
	}
	if s.Len != n || s.Off < 0 {
		return fmt.Errorf("range of %d bytes at %d: the span has %d bytes at %d of its file", n, off, s.Len, s.Off)
	}
	p := junk(n)
	if ok, err := readSpan(s, p); !ok || err != nil {
		return err
	}
	if err := m.compare(p, off); err != nil {
		return fmt.Errorf("span of %d bytes at %d of its file: %w", s.Len, s.Off, err)
	}
	if !onlyData || d.Caps().Extents != block.Native {
		return nil
	}
	var hole error
	err := d.Extents(r.ctx, off, n, block.One, func(x block.Extent) bool {
		if x.State&block.Hole != 0 {
			hole = fmt.Errorf("range of %d bytes at %d is said to have no holes, and begins with one of %d bytes", n, off, x.Length)
		}
		return false
	})
	return errors.Join(hole, err)
}

// checkAvoid is the end of a device's spans: what could not be sent is not
// offered again.
func checkAvoid(r *run) error {
	d, m, err := r.openModel()
	if err != nil {
		return err
	}
	n := min(d.Size(), 64<<10)
	if !d.Caps().ReadOnly { // so that it is in memory
		p := noise(newRand(4), n)
		if err := d.WriteAt(r.ctx, p, 0, 0); err != nil {
			return err
		}
		m.write(p, 0)
	}
	s, ok := d.Range(0, n, false)
	if !ok {
		return skip("the device has no spans")
	}
	if err := m.check(r.ctx, d, 0, n); err != nil {
		return err
	}
	d.Avoid(s)
	if _, ok := d.Range(0, n, false); ok {
		return fmt.Errorf("range of %d bytes at 0 is offered again after Avoid", n)
	}
	d.Avoid(block.Span{})
	return m.checkAll(r.ctx, d)
}
