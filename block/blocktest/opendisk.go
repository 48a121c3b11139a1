package blocktest

import (
	"context"
	"errors"
	"fmt"

	"nbd.example/nbd/block"
)

// Caps returns what the disk was made with.
func (o *openDisk) Caps() block.Caps { return o.d.caps }

// Close may be called once, and is the last call.
func (o *openDisk) Close() error {
	if o.closed.Swap(true) {
		o.d.t.Error("blocktest.Disk: closed twice")
	} else {
		o.d.live.Add(-1)
	}
	return nil
}

// begin checks a call, and lets the hook have its say.
func (o *openDisk) begin(c Call, l block.Level, flags block.Flags) error {
	if err := o.valid(c, l, flags); err != nil {
		err = fmt.Errorf("blocktest.Disk: %v: %w", c, err)
		o.d.t.Error(err)
		return err
	}
	if o.d.Hook != nil {
		if err := o.d.Hook(c); err != nil {
			return err
		}
	}
	return nil
}

func (o *openDisk) valid(c Call, l block.Level, flags block.Flags) error {
	d := o.d
	if d.caps.FUA != block.Native {
		flags &^= block.FUA
	}
	if d.caps.FastZero == block.None || d.caps.FastZero == block.Emulated {
		flags &^= block.FastZero
	}
	unit := max(d.caps.BlockSize.Minimum, 1)
	switch {
	case o.closed.Load():
		return errors.New("called after Close")
	case l == block.None || l == block.Emulated:
		return errors.New("called, though Caps deny it")
	case c.Flags&^flags != 0:
		return fmt.Errorf("called with the flags%s, though the contract or Caps deny them", flagNames(c.Flags&^flags))
	case c.Method == "Flush":
		return nil
	case c.N <= 0:
		return errors.New("called with no length")
	case c.Off < 0 || c.Off > d.caps.Size || c.N > d.caps.Size-c.Off:
		return fmt.Errorf("called with a range that is not inside %d bytes", d.caps.Size)
	case (c.Off|c.N)%unit != 0:
		return fmt.Errorf("called with a range that is not in blocks of %d bytes", unit)
	case c.Method == "ReadAt" || c.Method == "WriteAt":
		if limit := d.caps.BlockSize.Maximum; limit > 0 && c.N > limit {
			return fmt.Errorf("called with more than %d bytes at once", limit)
		}
	}
	return nil
}

// locked does a change under the lock, while the power is on.
func (o *openDisk) locked(do func(d *Disk)) error {
	o.d.mu.Lock()
	defer o.d.mu.Unlock()
	if o.power != o.d.power {
		return ErrCut
	}
	do(o.d)
	return nil
}

func (o *openDisk) writable(l block.Level) block.Level {
	if o.d.caps.ReadOnly {
		return block.None
	}
	return l
}

func (o *openDisk) ReadAt(_ context.Context, p []byte, off int64) error {
	if err := o.begin(Call{"ReadAt", off, int64(len(p)), 0}, block.Native, 0); err != nil {
		return err
	}
	return o.read(p, off)
}

func (o *openDisk) read(p []byte, off int64) error {
	o.d.mu.RLock()
	defer o.d.mu.RUnlock()
	if o.power != o.d.power {
		return ErrCut
	}
	copy(p, o.d.data[off:])
	return nil
}

func (o *openDisk) WriteAt(_ context.Context, p []byte, off int64, f block.Flags) error {
	if err := o.begin(Call{"WriteAt", off, int64(len(p)), f}, o.writable(block.Native), block.FUA); err != nil {
		return err
	}
	return o.write(p, off, f&block.FUA != 0)
}

func (o *openDisk) write(p []byte, off int64, stable bool) error {
	n := int64(len(p))
	return o.locked(func(d *Disk) {
		d.change(off, n, stable, func() {
			copy(d.data[off:], p)
			d.mark(off, n, 0)
		})
	})
}

func (o *openDisk) Flush(context.Context) error {
	if err := o.begin(Call{Method: "Flush"}, o.d.caps.Flush, 0); err != nil {
		return err
	}
	return o.locked(func(d *Disk) { clear(d.old) })
}

// Trim leaves whole sectors as they are, or makes them zeroes, or junk.
func (o *openDisk) Trim(_ context.Context, off, n int64, f block.Flags) error {
	if err := o.begin(Call{"Trim", off, n, f}, o.writable(o.d.caps.Trim), block.FUA); err != nil {
		return err
	}
	return o.locked(func(d *Disk) {
		lo, hi := d.whole(off, n)
		kind := d.rnd.IntN(3)
		d.change(off, n, f&block.FUA != 0, func() {
			switch {
			case lo >= hi || kind == 0:
			case kind == 1:
				clear(d.data[lo:hi])
				d.mark(lo, hi-lo, block.Hole|block.Zero)
			default:
				copy(d.data[lo:hi], junk(hi-lo))
				d.mark(lo, hi-lo, block.Hole)
			}
		})
	})
}

// WriteZeroes refuses what is less than a sector, and has Device write it.
func (o *openDisk) WriteZeroes(_ context.Context, off, n int64, f block.Flags) error {
	flags := block.FUA | block.NoHole | block.FastZero
	if err := o.begin(Call{"WriteZeroes", off, n, f}, o.writable(o.d.caps.Zero), flags); err != nil {
		return err
	}
	if n < Sector {
		return fmt.Errorf("zeroes for less than a sector: %w", errors.ErrUnsupported)
	}
	return o.locked(func(d *Disk) {
		d.change(off, n, f&block.FUA != 0, func() {
			clear(d.data[off : off+n])
			state := block.Hole | block.Zero
			if f&block.NoHole != 0 {
				state = block.Zero
				for i := off / Sector; i*Sector < off+n; i++ { // the ends, too, are allocated
					d.state[i] &^= block.Hole
				}
			}
			if lo, hi := d.whole(off, n); lo < hi {
				d.mark(lo, hi-lo, state)
			}
		})
	})
}

// Extents now and then splits one, or ends early.
func (o *openDisk) Extents(_ context.Context, off, n int64, f block.Flags, add func(block.Extent) bool) error {
	if err := o.begin(Call{"Extents", off, n, f}, o.d.caps.Extents, block.One); err != nil {
		return err
	}
	var list []block.Extent
	err := o.locked(func(d *Disk) { list = d.extents(off, n) })
	for _, x := range list {
		if err != nil || !add(x) {
			break
		}
	}
	return err
}

func (d *Disk) extents(off, n int64) []block.Extent {
	unit := max(d.caps.BlockSize.Minimum, Sector)
	var list []block.Extent
	for at := off; at < off+n; {
		end := min(at-at%unit+unit, d.caps.Size)
		x := block.Extent{Length: end - at, State: d.stateOf(at, end), Depth: 1}
		if x.State&block.Hole != 0 {
			x.Depth = 0
		}
		if k := len(list) - 1; k >= 0 && list[k].State == x.State && d.rnd.IntN(64) > 0 {
			list[k].Length += x.Length
		} else if k >= 0 && d.rnd.IntN(16) == 0 {
			return list
		} else {
			list = append(list, x)
		}
		at = end
	}
	return list
}

// stateOf returns what is true of all sectors that lo to hi touches.
func (d *Disk) stateOf(lo, hi int64) block.State {
	s := block.Hole | block.Zero
	for i := lo / Sector; i*Sector < hi; i++ {
		s &= d.state[i]
	}
	return s
}

func (o *openDisk) Cache(_ context.Context, off, n int64) error {
	if err := o.begin(Call{"Cache", off, n, 0}, o.d.caps.Cache, 0); err != nil {
		return err
	}
	return o.locked(func(*Disk) {})
}

// TryRead sometimes refuses.
func (o *openDisk) TryRead(p []byte, off int64) bool {
	return off/Sector%3 != 0 && o.valid(Call{"ReadAt", off, int64(len(p)), 0}, block.Native, 0) == nil && o.read(p, off) == nil
}

// TryWrite sometimes refuses in the middle.
func (o *openDisk) TryWrite(p []byte, off int64) bool {
	if o.valid(Call{"WriteAt", off, int64(len(p)), 0}, o.writable(block.Native), 0) != nil {
		return false
	}
	if off/Sector%3 == 0 {
		if half := p[:len(p)/2]; len(half) > 0 {
			o.write(half, off, false)
		}
		return false
	}
	return o.write(p, off, false) == nil
}

// Range offers nothing: there is no file.
func (o *openDisk) Range(int64, int64, bool) (block.Span, bool) { return block.Span{}, false }

// Avoid has nothing to do.
func (o *openDisk) Avoid(block.Span) {}
