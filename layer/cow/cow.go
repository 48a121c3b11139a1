// Package cow is a layer that takes writes and never passes them on: copy on
// write. The changes live in a temporary file, the diff, and are gone when the
// device is closed. It is the copyonwrite of nbd-server.
//
// # Concepts
//
// The device below, the base, is only read, so it may be read-only, and many
// such layers may stand on one base. A block of [BlockSize] bytes is in one of
// three places: in the base, where all begin; in the diff, from the first write to
// it; or nowhere, when it was trimmed or zeroed: then it reads as zeroes and takes
// no room. A write to a part of a block copies the rest of it from the base.
//
// Trimming and zeroing never reach the base. They give the room in the diff back,
// to other blocks and, where the system can, to the file system.
//
// The diff is packed: blocks follow each other in the order in which they were
// first written. With [Config].Sparse each block has its own place, at the same
// offset as in the base, and the file relies on holes: large writes
// stay in one piece, and the file looks as large as the base.
//
// # Durability
//
// Nothing of the diff outlives the device, not even a normal end. So there is
// nothing that a flush could make stable: Flush does nothing and succeeds, and
// the same goes for FUA. A server's crash loses all changes; what
// tells a client that came back is the name of the contents
// ([block.Caps].Instance), which is new each time.
//
// # Extents
//
// Depth is 1 for what was changed here, trimmed and zeroed blocks included
// (they hide what the base has), one more than in the base for the rest, and 0
// where the base has nothing either. So the changes are what has depth 1.
//
// # Memory
//
// The layer keeps about 4 bytes for each block in the diff, in memory.
package cow

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

	"nbd.example/nbd/block"
)

// BlockSize is the unit of the diff, in bytes.
const BlockSize = 1 << blockBits

const blockBits = 12

// Config says where and how changes are kept.
type Config struct {
	// Dir is the folder of the diff. "" means that of temporary files. The name
	// of the diff is removed at once where the system allows that, and else when
	// the device is closed.
	Dir string
	// Sparse gives each block its own place in the diff. It needs a file system
	// that has sparse files.
	Sparse bool
	// CreateTemp makes the diff, like os.CreateTemp, which nil means. It may
	// remove the name of the file by itself.
	CreateTemp func(dir, pattern string) (*os.File, error)
}

// Layer returns a layer that keeps changes to itself, as c says.
func Layer(c Config) block.Layer {
	return func(next *block.Device) (block.Backend, error) {
		d, err := newDiff(c)
		if err != nil {
			return nil, err
		}
		l := &layer{next: next, below: next.Caps(), size: next.Size(), diff: d}
		if l.size > 0 {
			l.blocks = (l.size-1)>>blockBits + 1
		}
		l.table = newMap(l.blocks, c.Sparse)
		return l, nil
	}
}

type layer struct {
	next   *block.Device
	below  block.Caps
	size   int64
	blocks int64
	diff   *diff

	// A block's value in the table, and its bytes in the diff, change only under
	// its lock. So a reader that holds the lock for reading may look a value up
	// and use it after mu is free again, while others change other blocks.
	locks stripes
	mu    sync.RWMutex // guards table
	table *blockMap
}

var (
	_ block.Backend    = (*layer)(nil)
	_ block.Writer     = (*layer)(nil)
	_ block.Flusher    = (*layer)(nil)
	_ block.Trimmer    = (*layer)(nil)
	_ block.ZeroWriter = (*layer)(nil)
	_ block.Extenter   = (*layer)(nil)
	_ block.Cacher     = (*layer)(nil)
)

// Caps implements block.Backend.
func (l *layer) Caps() block.Caps {
	c := block.Caps{
		Size:       l.size,
		BlockSize:  block.BlockSize{Preferred: max(BlockSize, l.below.BlockSize.Preferred)},
		Rotational: l.below.Rotational,
		MultiConn:  true,
		Depth:      true,
		Flush:      block.Native,
		FUA:        block.Native,
		Trim:       block.Native,
		Zero:       block.Native,
		FastZero:   block.Native,
		Extents:    block.Native,
		Cache:      block.Emulated,
	}
	if l.below.Cache == block.Native {
		c.Cache = block.Native
	}
	return c
}

// lookup returns the value of block b, and how many blocks from b on it holds
// for, or more: the caller cuts that.
func (l *layer) lookup(b, limit int64) (v uint32, n int64) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.table.get(b, limit)
}

// set gives n blocks from b on the value v, or values from v on.
func (l *layer) set(b, n int64, v uint32) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.table.set(b, n, v)
}

// run returns the value at off, and where the run ends that has it, at most end.
func (l *layer) run(off, end int64) (v uint32, stop int64) {
	b := off >> blockBits
	v, n := l.lookup(b, (end-1)>>blockBits-b+1)
	if b+n >= l.blocks {
		return v, end
	}
	return v, min(end, (b+n)<<blockBits)
}

// ReadAt implements block.Backend.
func (l *layer) ReadAt(ctx context.Context, p []byte, off int64) error {
	end := off + int64(len(p))
	l.locks.rlock(off, end)
	defer l.locks.runlock(off, end)
	for off < end {
		v, stop := l.run(off, end)
		n := stop - off
		var err error
		switch v {
		case inBase:
			err = l.next.ReadAt(ctx, p[:n], off)
		case isZero:
			clear(p[:n])
		default:
			err = l.diff.read(p[:n], v, off)
		}
		if err != nil {
			return err
		}
		p, off = p[n:], stop
	}
	return nil
}

// WriteAt implements block.Writer. FUA asks for nothing here.
func (l *layer) WriteAt(ctx context.Context, p []byte, off int64, _ block.Flags) error {
	end := off + int64(len(p))
	l.locks.lock(off, end)
	defer l.locks.unlock(off, end)
	return l.pieces(off, end, func(at, stop int64, whole bool) error {
		piece := p[at-off : stop-off]
		if whole {
			return l.writeWhole(ctx, piece, at)
		}
		return l.writePart(ctx, piece, at)
	})
}

// pieces calls do for the parts of blocks at the edges of a range, each with a
// part of one block, and for all whole blocks between them. The last block of
// the device may be short, and is whole up to the end of the device.
func (l *layer) pieces(off, end int64, do func(off, end int64, whole bool) error) error {
	for off < end {
		b := off >> blockBits
		var stop int64
		whole := off&(BlockSize-1) == 0
		switch last := end >> blockBits; {
		case whole && end == l.size:
			stop = end
		case whole && b < last:
			stop = last << blockBits
		case b < last:
			whole, stop = false, (b+1)<<blockBits
		default:
			whole, stop = false, end
		}
		if err := do(off, stop, whole); err != nil {
			return err
		}
		off = stop
	}
	return nil
}

// writeWhole writes whole blocks. The caller holds their locks.
func (l *layer) writeWhole(ctx context.Context, p []byte, off int64) error {
	for len(p) > 0 {
		if err := ctx.Err(); err != nil {
			return err
		}
		v, stop := l.run(off, off+int64(len(p)))
		n := stop - off
		if v >= firstSlot {
			if err := l.diff.write(p[:n], v, off); err != nil {
				return err
			}
		} else {
			blocks := (n-1)>>blockBits + 1
			v, taken, err := l.diff.take(blocks)
			if err != nil {
				return err
			}
			if taken < blocks {
				n = taken << blockBits
			}
			if err := l.diff.write(p[:n], v, off); err != nil {
				l.diff.give(v, taken)
				return err
			}
			l.set(off>>blockBits, taken, v)
		}
		p, off = p[n:], off+n
	}
	return nil
}

// writePart writes a part of one block. The caller holds its lock.
func (l *layer) writePart(ctx context.Context, p []byte, off int64) error {
	b := off >> blockBits
	v, _ := l.lookup(b, 1)
	if v >= firstSlot {
		return l.diff.write(p, v, off)
	}
	start := b << blockBits
	var buf [BlockSize]byte
	old := buf[:min(BlockSize, l.size-start)]
	if v == inBase {
		if err := l.next.ReadAt(ctx, old, start); err != nil {
			return fmt.Errorf("cow: copy a block from below: %w", err)
		}
	}
	copy(old[off-start:], p)
	return l.writeWhole(ctx, old, start)
}

// Flush implements block.Flusher. See the package comment.
func (l *layer) Flush(context.Context) error { return nil }

// Trim implements block.Trimmer. Blocks that are only partly in the range stay.
func (l *layer) Trim(ctx context.Context, off, n int64, _ block.Flags) error {
	l.locks.lock(off, off+n)
	defer l.locks.unlock(off, off+n)
	return l.pieces(off, off+n, func(at, stop int64, whole bool) error {
		if !whole {
			return nil
		}
		return l.drop(ctx, at, stop)
	})
}

// drop makes whole blocks read as zeroes. The caller holds their locks.
func (l *layer) drop(ctx context.Context, off, end int64) error {
	for off < end {
		if err := ctx.Err(); err != nil {
			return err
		}
		v, stop := l.run(off, end)
		n := (stop-off-1)>>blockBits + 1
		if v != isZero {
			l.set(off>>blockBits, n, isZero)
		}
		if v >= firstSlot {
			l.diff.punch(v, off, n)
			l.diff.give(v, n)
		}
		off = stop
	}
	return nil
}

// WriteZeroes implements block.ZeroWriter. What must stay allocated is written by
// the caller. A range without a whole block is no faster than a write.
func (l *layer) WriteZeroes(ctx context.Context, off, n int64, f block.Flags) error {
	end := off + n
	first, last := off>>blockBits, end>>blockBits // whole blocks
	if off&(BlockSize-1) != 0 {
		first++
	}
	if end == l.size {
		last = l.blocks
	}
	if f&block.NoHole != 0 || f&block.FastZero != 0 && first >= last {
		return fmt.Errorf("cow: %w: zeroes without writing them", errors.ErrUnsupported)
	}
	l.locks.lock(off, end)
	defer l.locks.unlock(off, end)
	var zeroes [BlockSize]byte
	return l.pieces(off, end, func(at, stop int64, whole bool) error {
		if whole {
			return l.drop(ctx, at, stop)
		}
		if v, _ := l.lookup(at>>blockBits, 1); v == isZero {
			return nil
		}
		return l.writePart(ctx, zeroes[:stop-at], at)
	})
}

// Close implements block.Backend. It drops the diff.
func (l *layer) Close() error { return errors.Join(l.diff.close(), l.next.Close()) }
