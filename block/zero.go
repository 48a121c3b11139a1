package block

import (
	"context"
	"errors"
	"fmt"
	"sync"
)

// zeroes is what is written where zeroes must be written. It is never changed.
var zeroes = make([]byte, 1<<20)

// WriteZeroes makes a range read as zeroes. Flags: FUA, NoHole, FastZero.
func (d *Device) WriteZeroes(ctx context.Context, off, n int64, f Flags) error {
	if err := d.writable(off, n); err != nil {
		return err
	}
	if d.caps.Zero == None {
		return fmt.Errorf("%w: write zeroes", errors.ErrUnsupported)
	}
	if f&FastZero != 0 && d.caps.FastZero != Native {
		return fmt.Errorf("%w: fast zeroes", errors.ErrUnsupported)
	}
	if n == 0 {
		return nil
	}
	defer d.lock(off, n)()
	return d.stable(ctx, f&(FUA|NoHole|FastZero), func(f Flags) error { return d.zeroLocked(ctx, off, n, f) })
}

// zeroLocked zeroes whole blocks by the back end and the rest by writing.
func (d *Device) zeroLocked(ctx context.Context, off, n int64, f Flags) error {
	lo, hi := d.up(off), d.down(off+n)
	if f&FastZero != 0 && (lo != off || hi != off+n) {
		return fmt.Errorf("%w: fast zeroes of a part of a block", errors.ErrUnsupported)
	}
	if lo >= hi { // inside one block, or two neighbours
		return d.writeZeroes(ctx, off, n, f)
	}
	if err := d.zeroBlocks(ctx, lo, hi-lo, f); err != nil {
		return err
	}
	if err := d.writeZeroes(ctx, off, lo-off, f); err != nil {
		return err
	}
	return d.writeZeroes(ctx, hi, off+n-hi, f)
}

func (d *Device) zeroBlocks(ctx context.Context, off, n int64, f Flags) error {
	if d.caps.Zero == Native {
		err := d.z.WriteZeroes(ctx, off, n, f)
		if f&FastZero != 0 || !errors.Is(err, errors.ErrUnsupported) {
			return err
		}
	}
	return d.writeZeroes(ctx, off, n, f)
}

// writeZeroes writes zeroes inside a locked range.
func (d *Device) writeZeroes(ctx context.Context, off, n int64, f Flags) error {
	f &= FUA
	for n > 0 {
		// Pieces after the first begin at a multiple of the buffer's size.
		k := min(n, int64(len(zeroes))-off%int64(len(zeroes)))
		if err := d.writeLocked(ctx, zeroes[:k], off, f); err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		off, n = off+k, n-k
	}
	return nil
}

var scratch sync.Pool // of *[]byte, up to scratchKeep

const scratchKeep = 1 << 20

// getScratch returns a buffer of n bytes with arbitrary contents.
func getScratch(n int) *[]byte {
	if n <= scratchKeep {
		if p, _ := scratch.Get().(*[]byte); p != nil {
			if cap(*p) >= n {
				*p = (*p)[:n]
				return p
			}
		}
	}
	b := make([]byte, n, max(n, 64<<10))
	return &b
}

func putScratch(p *[]byte) {
	if cap(*p) <= scratchKeep {
		scratch.Put(p)
	}
}
