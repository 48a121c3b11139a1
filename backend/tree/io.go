package tree

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"syscall"

	"nbd.example/nbd/block"
)

// open returns the open file of a block that has one. The caller holds the lock of the
// block, and releases the handle. What keep means, cache.put says.
func (t *Tree) open(b int64, keep bool) (*handle, error) {
	if h := t.cache.get(b); h != nil {
		return h, nil
	}
	f, err := t.openFile(t.file(b), t.openFlag())
	if err != nil {
		return nil, fmt.Errorf("tree: open a block: %w", err)
	}
	return t.cache.put(b, f, keep), nil
}

func (t *Tree) openFlag() int {
	if t.config.ReadOnly {
		return os.O_RDONLY
	}
	return os.O_RDWR
}

// openFile opens a file. If the process has too many open, it closes those that are not
// in use, and tries again.
func (t *Tree) openFile(name string, flag int) (File, error) {
	f, err := t.fs.OpenFile(name, flag)
	if errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) {
		t.cache.shrink()
		f, err = t.fs.OpenFile(name, flag)
	}
	return f, err
}

// ReadAt implements block.Backend.
func (t *Tree) ReadAt(ctx context.Context, p []byte, off int64) error {
	return each(ctx, off, int64(len(p)), func(b, at, i, end int64) error { return t.read(b, p[i:end], at) })
}

func (t *Tree) read(b int64, p []byte, at int64) error {
	if t.tryRead(b, p, at) { // it takes less
		return nil
	}
	l := t.lock(b)
	l.RLock()
	defer l.RUnlock()
	ok, err := t.known.has(b)
	if err != nil {
		return err
	}
	if !ok {
		clear(p)
		return nil
	}
	h, err := t.open(b, len(p) < BlockSize)
	if err != nil {
		return err
	}
	defer h.release()
	n, err := h.ReadAt(p, at)
	if n < len(p) && err != io.EOF {
		return fmt.Errorf("tree: read a block: %w", err)
	}
	clear(p[n:])
	return nil
}

// WriteAt implements block.Writer.
func (t *Tree) WriteAt(ctx context.Context, p []byte, off int64, f block.Flags) error {
	err := each(ctx, off, int64(len(p)), func(b, at, i, end int64) error { return t.write(b, p[i:end], at, f) })
	if err == nil && t.mustBeStable(f) {
		err = t.stable(off>>blockBits, (off+int64(len(p))-1)>>blockBits)
	}
	return err
}

// mustBeStable tells whether a change must be stable when it returns.
func (t *Tree) mustBeStable(f block.Flags) bool { return f&block.FUA != 0 || t.config.Sync }

func (t *Tree) write(b int64, p []byte, at int64, f block.Flags) error {
	// It takes less, but may close the file, and then nobody tells of what becomes of it.
	if !t.mustBeStable(f) && t.tryWrite(b, p, at) {
		return nil
	}
	done, err := t.rewrite(b, p, at)
	if !done && err == nil {
		err = t.create(b, p, at)
	}
	return err
}

// rewrite writes to the file of a block, if there is one.
func (t *Tree) rewrite(b int64, p []byte, at int64) (done bool, err error) {
	l := t.lock(b)
	l.RLock()
	defer l.RUnlock()
	ok, err := t.known.has(b)
	if !ok || err != nil {
		return false, err
	}
	return true, t.writeFile(b, p, at)
}

// writeFile writes to the file of a block that has one. The caller holds the lock.
func (t *Tree) writeFile(b int64, p []byte, at int64) error {
	h, err := t.open(b, true)
	if err != nil {
		return err
	}
	defer h.release()
	// When the write returns and not before: a flush may be under way.
	defer t.dirty.file(h)
	if len(p) < BlockSize {
		if err := h.makeWhole(); err != nil {
			return fmt.Errorf("tree: give a block its full length: %w", err)
		}
	}
	if _, err := h.WriteAt(p, at); err != nil {
		return fmt.Errorf("tree: write a block: %w", err)
	}
	return nil
}

// makeWhole gives a file that is too short its full length, which the reference
// relies on.
func (h *handle) makeWhole() error {
	if h.whole.Load() {
		return nil
	}
	n, err := h.Size()
	if err == nil && n < BlockSize {
		err = h.Truncate(BlockSize)
	}
	h.whole.Store(err == nil)
	return err
}

// create makes the file of a block, and writes it.
func (t *Tree) create(b int64, p []byte, at int64) error {
	l := t.lock(b)
	l.Lock()
	defer l.Unlock()
	ok, err := t.known.has(b)
	if err != nil {
		return err
	}
	if ok { // since a moment ago
		return t.writeFile(b, p, at)
	}
	if err := t.makeDir(leaf(b)); err != nil {
		return err
	}
	path := t.file(b)
	f, err := t.openFile(path, os.O_RDWR|os.O_CREATE)
	if err != nil {
		return fmt.Errorf("tree: make a block: %w", err)
	}
	// All of it at once: a crash leaves nothing, or an empty file, or the whole.
	var whole [BlockSize]byte
	copy(whole[at:], p)
	if _, err := f.WriteAt(whole[:], 0); err != nil {
		return errors.Join(fmt.Errorf("tree: write a new block: %w", err), f.Close(), t.fs.Remove(path))
	}
	err = t.known.with(leaf(b), func(c *children) { c.add(b & (fan - 1)) })
	h := t.cache.put(b, f, true)
	h.whole.Store(true)
	t.dirty.file(h)
	h.release()
	t.dirty.dir(leaf(b))
	return err
}

// makeDir sees to it that a folder is there.
func (t *Tree) makeDir(n node) error {
	if n.level >= t.levels {
		return nil
	}
	there := false
	look := func() error {
		return t.known.with(n.above(), func(c *children) { there = c.has(n.index & (fan - 1)) })
	}
	if err := look(); err != nil || there {
		return err
	}
	if err := t.makeDir(n.above()); err != nil {
		return err
	}
	t.made.Lock()
	defer t.made.Unlock()
	if err := look(); err != nil || there {
		return err
	}
	if err := t.fs.Mkdir(t.dir(n)); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("tree: make a folder: %w", err)
	}
	t.dirty.dir(n.above())
	return t.known.with(n.above(), func(c *children) { c.add(n.index & (fan - 1)) })
}

// Trim implements block.Trimmer. Blocks that are only partly in the range stay.
func (t *Tree) Trim(ctx context.Context, off, n int64, f block.Flags) error {
	first, last := t.wholeBlocks(off, n)
	return t.removeAll(ctx, first, last, f)
}

// wholeBlocks returns the blocks that are wholly in a range; the last one of the
// device may be short.
func (t *Tree) wholeBlocks(off, n int64) (first, last int64) {
	first, last = (off+BlockSize-1)>>blockBits, (off+n)>>blockBits
	if off+n == t.size {
		last = (t.size-1)>>blockBits + 1
	}
	return first, last
}

// WriteZeroes implements block.ZeroWriter. What must stay allocated is written by
// the caller.
func (t *Tree) WriteZeroes(ctx context.Context, off, n int64, f block.Flags) error {
	if f&block.NoHole != 0 {
		return fmt.Errorf("tree: %w: zeroes without writing them", errors.ErrUnsupported)
	}
	end := off + n
	first, last := t.wholeBlocks(off, n)
	if first > last { // a part of one block
		return t.zeroPart(off, end, f)
	}
	if lo := first << blockBits; off < lo {
		if err := t.zeroPart(off, min(lo, end), f); err != nil {
			return err
		}
	}
	if hi := last << blockBits; hi < end && hi >= off {
		if err := t.zeroPart(hi, end, f); err != nil {
			return err
		}
	}
	return t.removeAll(ctx, first, last, f)
}

// zeroPart zeroes a part of a block, if it has a file.
func (t *Tree) zeroPart(off, end int64, f block.Flags) error {
	var zeroes [BlockSize]byte
	b := off >> blockBits
	done, err := t.rewrite(b, zeroes[:end-off], off%BlockSize)
	switch {
	case err != nil || !t.mustBeStable(f):
		return err
	case done:
		return t.stable(b, b)
	}
	return t.stableDir(leaf(b)) // that the file is gone may not be stable yet
}

// removeAll removes the files of blocks.
func (t *Tree) removeAll(ctx context.Context, first, last int64, f block.Flags) error {
	for b := first; ; b++ {
		var err error
		if b, err = t.known.find(b, last); err != nil {
			return err
		}
		if b >= last {
			break
		}
		if err := t.remove(b); err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	if !t.mustBeStable(f) || first >= last {
		return nil
	}
	// Also those whose files have gone earlier, by a change that was not stable.
	for _, n := range t.dirty.leaves(leaf(first), leaf(last-1)) {
		if err := t.stableDir(n); err != nil {
			return err
		}
	}
	return nil
}

// remove removes the file of a block.
func (t *Tree) remove(b int64) error {
	l := t.lock(b)
	l.Lock()
	defer l.Unlock()
	t.cache.drop(b)
	if err := t.fs.Remove(t.file(b)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("tree: remove a block: %w", err)
	}
	t.dirty.gone(b)
	t.dirty.dir(leaf(b))
	return t.known.with(leaf(b), func(c *children) { c.remove(b & (fan - 1)) })
}

// Extents implements block.Extenter.
func (t *Tree) Extents(ctx context.Context, off, n int64, f block.Flags, add func(block.Extent) bool) error {
	last := (off+n-1)>>blockBits + 1
	for b := off >> blockBits; b < last; {
		next, err := t.known.find(b, last)
		if err != nil {
			return err
		}
		x := block.Extent{State: block.Hole | block.Zero}
		if next == b {
			x = block.Extent{Depth: 1}
			if next, err = t.endOfData(ctx, b, last); err != nil {
				return err
			}
		}
		x.Length = next<<blockBits - max(off, b<<blockBits)
		if !add(x) || f&block.One != 0 {
			return nil
		}
		b = next
	}
	return nil
}

// endOfData returns the first block from b on without a file, or end.
func (t *Tree) endOfData(ctx context.Context, b, end int64) (int64, error) {
	for ; b < end; b++ {
		ok, err := t.known.has(b)
		if err != nil || !ok {
			return b, err
		}
		if b%fan == 0 && ctx.Err() != nil {
			return b, ctx.Err()
		}
	}
	return end, nil
}
