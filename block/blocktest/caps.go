package blocktest

import (
	"errors"
	"fmt"
	"math"

	"nbd.example/nbd/block"
)

// checkCaps looks at what is promised, against the methods and the rest.
func checkCaps(r *run) error {
	b, err := r.x.Open(r.t, r.x.Size)
	if err != nil {
		return fmt.Errorf("open with %d bytes: %w", r.x.Size, err)
	}
	raw, again := b.Caps(), b.Caps()
	d, err := r.device(b)
	if err != nil {
		return err
	}
	if raw.Instance != again.Instance {
		return fmt.Errorf("Caps().Instance is %q when first asked, then %q", raw.Instance, again.Instance)
	}
	c := d.Caps()
	for name, l := range levels(c) {
		if l == block.Auto || l > block.Native {
			return fmt.Errorf("%s has the level %d after New", name, l)
		}
	}
	// An ability that a back end promises by name must not come to nothing.
	for name, l := range levels(raw) {
		if l == block.Native && levels(c)[name] != block.Native && !c.ReadOnly {
			return fmt.Errorf("%s is promised as native, and is %d after New", name, levels(c)[name])
		}
	}
	if c.BlockSize.Preferred < c.BlockSize.Minimum {
		return fmt.Errorf("preferred block size %d, minimum %d", c.BlockSize.Preferred, c.BlockSize.Minimum)
	}
	return nil
}

// levels returns the abilities of c by the names of their fields.
func levels(c block.Caps) map[string]block.Level {
	return map[string]block.Level{
		"Flush": c.Flush, "FUA": c.FUA, "Trim": c.Trim, "Zero": c.Zero,
		"FastZero": c.FastZero, "Extents": c.Extents, "Cache": c.Cache,
	}
}

// checkSizes opens devices of odd sizes, and uses their first and last bytes.
func checkSizes(r *run) error {
	u := r.x.SizeUnit
	for _, size := range []int64{0, u, 2 * u, 4096, 32 << 10, 64<<10 - u, 64 << 10, 64<<10 + u, 3*(64<<10) + 3*u} {
		if size%u != 0 {
			continue
		}
		d, err := r.open(size)
		if err != nil && size == 0 {
			continue // a device of nothing may be refused
		}
		if err != nil {
			return err
		}
		m := newModel(r.x, d.Size())
		if err := ends(r, d, m); err != nil {
			return fmt.Errorf("with %d bytes: %w", d.Size(), err)
		}
		if err := d.Close(); err != nil {
			return fmt.Errorf("with %d bytes: close: %w", d.Size(), err)
		}
	}
	return nil
}

func ends(r *run, d *block.Device, m *model) error {
	if err := m.checkAll(r.ctx, d); err != nil || d.Size() == 0 || d.Caps().ReadOnly {
		return err
	}
	for _, off := range []int64{0, d.Size() - 1} {
		if err := d.WriteAt(r.ctx, []byte{0x77}, off, 0); err != nil {
			return fmt.Errorf("write the byte at %d: %w", off, err)
		}
		m.write([]byte{0x77}, off)
	}
	return m.checkAll(r.ctx, d)
}

// ranged is an operation on a range.
type ranged struct {
	name    string
	changes bool
	limit   int64 // bytes, where a buffer is needed
	do      func(r *run, d *block.Device, off, n int64) error
}

var rangedOps = []ranged{
	{"read", false, 2 << 20, func(r *run, d *block.Device, off, n int64) error {
		return d.ReadAt(r.ctx, make([]byte, n), off)
	}},
	{"write", true, 2 << 20, func(r *run, d *block.Device, off, n int64) error {
		return d.WriteAt(r.ctx, junk(n), off, 0)
	}},
	{"trim", true, math.MaxInt64, func(r *run, d *block.Device, off, n int64) error {
		return d.Trim(r.ctx, off, n, 0)
	}},
	{"write zeroes", true, math.MaxInt64, func(r *run, d *block.Device, off, n int64) error {
		return d.WriteZeroes(r.ctx, off, n, 0)
	}},
	{"extents", false, math.MaxInt64, func(r *run, d *block.Device, off, n int64) error {
		return d.Extents(r.ctx, off, n, 0, func(block.Extent) bool { return true })
	}},
	{"cache", false, math.MaxInt64, func(r *run, d *block.Device, off, n int64) error {
		return d.Cache(r.ctx, off, n)
	}},
}

// checkRanges asks for what is not inside the device.
func checkRanges(r *run) error {
	d, m, err := r.openModel()
	if err != nil {
		return err
	}
	size := d.Size()
	bad := []struct{ off, n int64 }{
		{-1, 1}, {-4096, 8192}, {math.MinInt64, 1}, {size, 1}, {size - 1, 2}, {0, size + 1},
		{size + 1, 0}, {math.MaxInt64, 1}, {math.MaxInt64, 0}, {1, math.MaxInt64}, {size, math.MaxInt64},
	}
	for _, op := range rangedOps {
		want := block.ErrRange
		if op.changes && d.Caps().ReadOnly {
			want = block.ErrReadOnly
		}
		for _, x := range bad {
			if x.n > op.limit {
				continue
			}
			if err := expect(op.do(r, d, x.off, x.n), want); err != nil {
				return fmt.Errorf("%s of %d bytes at %d of %d: %w", op.name, x.n, x.off, size, err)
			}
		}
		if d.TryRead(make([]byte, 2), size-1) || d.TryWrite(make([]byte, 2), size-1) || d.TryRead(make([]byte, 1), -1) {
			return errors.New("the fast path took a range that is not inside the device")
		}
	}
	return m.checkAll(r.ctx, d)
}

// checkZeroLength asks for nothing, everywhere.
func checkZeroLength(r *run) error {
	d, m, err := r.openModel()
	if err != nil {
		return err
	}
	c := d.Caps()
	denied := map[string]block.Level{"trim": c.Trim, "write zeroes": c.Zero}
	for _, op := range rangedOps {
		for _, off := range []int64{0, 1, d.Size() - 1, d.Size()} {
			err := op.do(r, d, off, 0)
			switch l, ok := denied[op.name]; {
			case op.changes && c.ReadOnly:
				err = expect(err, block.ErrReadOnly)
			case ok:
				err = expect(err, refusal(l))
			}
			if err != nil {
				return fmt.Errorf("%s of nothing at %d: %w", op.name, off, err)
			}
		}
	}
	return m.checkAll(r.ctx, d)
}

// checkLevels uses every ability once with every flag, over what was written, and
// wants it to work or to be refused with nothing changed.
func checkLevels(r *run) error {
	d, m, err := r.openModel()
	if err != nil {
		return err
	}
	p := &player{d: d, m: m, rnd: newRand(2), size: d.Size()}
	n := min(d.Size()/2, 128<<10)
	if n == 0 {
		return skip("the device is too small")
	}
	var steps []step
	for _, f := range []block.Flags{0, block.FUA} {
		steps = append(steps, step{kindWrite, 0, n, f}, step{kindTrim, 0, n / 2, f})
		for _, g := range []block.Flags{0, block.NoHole, block.FastZero, block.NoHole | block.FastZero} {
			steps = append(steps, step{kindWrite, 0, n, f}, step{kindZero, 0, n, f | g})
			steps = append(steps, step{kindWrite, 0, n, f}, step{kindZero, 1, n - 1, f | g}) // not aligned
		}
		steps = append(steps, step{kindFlush, 0, 0, 0}, step{kindCache, 0, n, 0}, step{kindExtents, 0, n, 0}, step{kindExtents, 0, n, block.One})
	}
	for _, s := range steps {
		if s.n == 0 && s.kind != kindFlush {
			continue
		}
		if err := p.do(r.ctx, s); err != nil {
			return fmt.Errorf("%v: %w", s, err)
		}
	}
	return m.checkAll(r.ctx, d)
}
