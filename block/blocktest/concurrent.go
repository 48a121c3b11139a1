package blocktest

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"nbd.example/nbd/block"
)

// together runs f n times at once and joins the errors.
func together(n int, f func(i int) error) error {
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { errs[i] = f(i) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// checkConcurrent gives each of many goroutines a part of the device. The borders
// of the parts are inside blocks. Whatever one does, the others must not see it.
func checkConcurrent(r *run) error {
	d, m, err := r.openModel()
	if err != nil {
		return err
	}
	const parts = 8
	part := d.Size() / parts
	if part == 0 {
		return skip("the device is too small")
	}
	s := seed()
	r.t.Logf("BLOCKTEST_SEED=%d", s)
	err = together(parts, func(i int) error {
		p := &player{d: d, m: m, rnd: newRand(s + uint64(i)), lo: int64(i) * part, size: part}
		for range r.x.Steps / 5 {
			if err := p.playAlone(r.ctx); err != nil {
				return fmt.Errorf("part %d of %d bytes at %d, BLOCKTEST_SEED=%d: %w\nits last operations:\n%s", i, part, p.lo, s, err, p.history())
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return m.checkAll(r.ctx, d)
}

// playAlone plays one operation that looks at nothing but the player's part:
// extents may reach beyond it, and say zero of what a neighbour then writes.
func (p *player) playAlone(ctx context.Context) error {
	s := p.next()
	if s.kind == kindExtents {
		err := p.d.Extents(ctx, s.off, s.n, s.f, func(block.Extent) bool { return true })
		return expect(err, refusal(p.d.Caps().Extents))
	}
	return p.playStep(ctx, s)
}

// checkNeighbours lets goroutines share blocks: each changes bytes of its own
// in all of them, and all must survive. A back end that needs alignment loses
// bytes here if reading, modifying and writing is not kept apart.
func checkNeighbours(r *run) error {
	d, m, err := r.openModel()
	if err != nil {
		return err
	}
	if d.Caps().ReadOnly {
		return skip("the device is read-only")
	}
	const writers, blocks = 5, 3
	size := max(d.Caps().BlockSize.Minimum, Sector)
	if d.Size() < blocks*size {
		return skip("the device is too small")
	}
	own := size / writers
	err = together(writers, func(i int) error {
		for round := range 200 {
			off := int64(round%blocks)*size + int64(i)*own
			if err := neighbour(r, d, m, off, own, byte(round*writers+i)); err != nil {
				return fmt.Errorf("writer %d of %d, round %d: %w", i, writers, round, err)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return m.checkAll(r.ctx, d)
}

// neighbour changes n bytes and looks whether they are there.
func neighbour(r *run, d *block.Device, m *model, off, n int64, fill byte) error {
	p := make([]byte, n)
	for i := range p {
		p[i] = fill
	}
	var err error
	switch {
	case fill%8 == 0 && d.Caps().Zero != block.None:
		clear(p)
		err = d.WriteZeroes(r.ctx, off, n, 0)
	case fill%4 == 1 && d.TryWrite(p, off):
	default:
		err = d.WriteAt(r.ctx, p, off, 0)
	}
	if err != nil {
		return err
	}
	m.write(p, off)
	return m.check(r.ctx, d, off, n)
}
