package blocktest

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"nbd.example/nbd/block"
)

// extents asks once, and checks what it gets: the extents begin at off, and
// those that say so read as zeroes. It returns where they end.
func extents(ctx context.Context, d *block.Device, off, n int64, f block.Flags) (int64, error) {
	var list []block.Extent
	end := off
	err := d.Extents(ctx, off, n, f, func(x block.Extent) bool {
		list = append(list, x)
		end += max(x.Length, 0)
		return f&block.One == 0 && end < off+n
	})
	if err != nil {
		return end, err
	}
	at := off
	for i, x := range list {
		switch {
		case x.Length <= 0:
			return end, fmt.Errorf("extent %d of %d has the length %d", i, len(list), x.Length)
		case at >= off+n:
			return end, fmt.Errorf("extent %d of %d begins at %d, after the last byte asked for", i, len(list), at)
		case x.Length > d.Size()-at:
			return end, fmt.Errorf("extent %d of %d has %d bytes at %d, past the end at %d", i, len(list), x.Length, at, d.Size())
		case x.State&^(block.Hole|block.Zero) != 0:
			return end, fmt.Errorf("extent %d of %d has the unknown state %#x", i, len(list), x.State)
		}
		if x.State&block.Zero != 0 {
			if err := isZero(ctx, d, at, x.Length); err != nil {
				return end, fmt.Errorf("the extent of %d bytes at %d says zero: %w", x.Length, at, err)
			}
		}
		at += x.Length
	}
	switch {
	case len(list) == 0:
		return end, errors.New("no extent at all")
	case f&block.One != 0 && len(list) > 1:
		return end, fmt.Errorf("%d extents, only the first was asked for", len(list))
	}
	return end, nil
}

func isZero(ctx context.Context, d *block.Device, off, n int64) error {
	const piece = 256 << 10
	for end := off + n; off < end; off += piece {
		p := junk(min(piece, end-off))
		if err := d.ReadAt(ctx, p, off); err != nil {
			return err
		}
		if rest := bytes.TrimLeft(p, "\x00"); len(rest) > 0 {
			return fmt.Errorf("byte %d is %#02x", off+int64(len(p)-len(rest)), rest[0])
		}
	}
	return nil
}

// checkExtents walks over the whole device before and after changes, and asks
// for stretches that begin and end anywhere.
func checkExtents(r *run) error {
	d, m, err := r.openModel()
	if err != nil {
		return err
	}
	if d.Caps().Extents == block.None {
		return skip("the device has no extents")
	}
	for _, f := range []block.Flags{0, block.One} {
		if err := walk(r.ctx, d, f); err != nil {
			return fmt.Errorf("fresh device: %w", err)
		}
	}
	p := &player{d: d, m: m, rnd: newRand(1), size: d.Size()}
	for i := range 60 {
		if err := p.play(r.ctx); err != nil {
			return err
		}
		if err := walk(r.ctx, d, block.Flags(i%2)*block.One); err != nil {
			return fmt.Errorf("after\n%s: %w", p.history(), err)
		}
	}
	if err := wholeBlocks(r); err != nil {
		return err
	}
	// To stop in the middle is the caller's right.
	calls := 0
	err = d.Extents(r.ctx, 0, d.Size(), 0, func(block.Extent) bool { calls++; return false })
	if err != nil || calls != 1 {
		return fmt.Errorf("add returned false at once, and was called %d times, error %v", calls, err)
	}
	return nil
}

// wholeBlocks asks the back end itself, of a device of its own: its extents end
// at borders of blocks.
func wholeBlocks(r *run) error {
	b, err := r.x.Open(r.t, r.x.Size)
	if err != nil {
		return err
	}
	defer b.Close()
	c := b.Caps()
	e, ok := b.(block.Extenter)
	unit := max(c.BlockSize.Minimum, 1)
	if !ok || c.Extents == block.None || c.Extents == block.Emulated || c.Size == 0 {
		return nil
	}
	var bad, end int64
	err = e.Extents(r.ctx, 0, c.Size, 0, func(x block.Extent) bool {
		if x.Length%unit != 0 {
			bad = x.Length
		}
		end += x.Length
		return bad == 0 && end < c.Size
	})
	if err == nil && bad != 0 {
		err = fmt.Errorf("the back end has blocks of %d bytes, and an extent of %d that ends at %d", unit, bad, end)
	}
	return err
}

// walk asks from the beginning to the end, from where the last answer ended.
func walk(ctx context.Context, d *block.Device, f block.Flags) error {
	for at := int64(0); at < d.Size(); {
		end, err := extents(ctx, d, at, d.Size()-at, f)
		if err != nil {
			return fmt.Errorf("extents from %d: %w", at, err)
		}
		at = end
	}
	return nil
}
