package tree

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"sync/atomic"

	"nbd.example/nbd/block"
)

// blockSet is a set of blocks, of which neighbours take little room. The zero value is
// empty.
type blockSet struct {
	folders map[int64]*children // by the index of a leaf
	count   int
}

// add reports whether b is new.
func (s *blockSet) add(b int64) bool {
	if s.folders == nil {
		s.folders = map[int64]*children{}
	}
	c := s.folders[b>>fanBits]
	if c == nil {
		c = new(children)
		s.folders[b>>fanBits] = c
	}
	i := b & (fan - 1)
	if c.has(i) {
		return false
	}
	c.add(i)
	s.count++
	return true
}

func (s *blockSet) remove(b int64) {
	if c, i := s.folders[b>>fanBits], b&(fan-1); c != nil && c.has(i) {
		c.remove(i)
		s.count--
	}
}

// all calls yield with each block.
func (s *blockSet) all(yield func(b int64) bool) {
	for n, c := range s.folders {
		for i := c.next(0); i < fan; i = c.next(i + 1) {
			if !yield(n<<fanBits | i) {
				return
			}
		}
	}
}

// dirty is what was changed since the last flush. The zero value is ready.
type dirty struct {
	syncsAll bool // the file system can be made stable at once
	// flushes counts them. With one a new period begins, for which a block is noted once.
	flushes atomic.Int64
	count   atomic.Int64 // of files

	mu    sync.Mutex
	files blockSet
	all   bool // the file system is to be made stable: files is empty
	dirs  map[node]struct{}
	// flushing are the folders that a flush has taken over, and not made stable yet.
	flushing map[node]struct{}
}

// file notes that the file of a block was written.
func (d *dirty) file(h *handle) {
	if h.noted.Load() == d.flushes.Load()+1 {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if h.noted.Swap(d.flushes.Load()+1) == d.flushes.Load()+1 || d.all {
		return
	}
	isNew := d.files.add(h.block)
	d.count.Store(int64(d.files.count))
	// What is not new was noted through another handle, which has been closed.
	if d.syncsAll && (!isNew || d.files.count > fewFiles) {
		d.files, d.all = blockSet{}, true
		d.count.Store(fewFiles)
	}
}

// gone notes that the file of a block was removed.
func (d *dirty) gone(b int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.all {
		d.files.remove(b)
		d.count.Store(int64(d.files.count))
	}
}

// keep reports whether files that are written must stay open, since a flush may make them
// stable one by one. The system may forget, with a file that is closed, that it could not be
// written back; the file system remembers.
func (d *dirty) keep() bool { return !d.syncsAll || d.count.Load() < fewFiles }

// dir notes that a name in a folder has come or gone.
func (d *dirty) dir(n node) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.dirs == nil {
		d.dirs = map[node]struct{}{}
	}
	d.dirs[n] = struct{}{}
}

// changes are what is dirty at the end of a period.
type changes struct {
	period int64
	files  blockSet
	all    bool
	dirs   map[node]struct{}
}

// take hands over all that is dirty.
func (d *dirty) take() changes {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.count.Store(0)
	c := changes{d.flushes.Add(1), d.files, d.all, d.dirs}
	d.files, d.all, d.dirs, d.flushing = blockSet{}, false, nil, d.dirs
	return c
}

// flushed ends what take began.
func (d *dirty) flushed() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.flushing = nil
}

// hasDir reports whether a folder has names that may not be stable.
func (d *dirty) hasDir(n node) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	_, now := d.dirs[n]
	_, soon := d.flushing[n]
	return now || soon
}

// leaves returns those folders of files, from first to last, of which hasDir is true.
func (d *dirty) leaves(first, last node) []node {
	d.mu.Lock()
	defer d.mu.Unlock()
	var list []node
	for _, dirs := range []map[node]struct{}{d.dirs, d.flushing} {
		for n := range dirs {
			if n.level == 0 && first.index <= n.index && n.index <= last.index {
				list = append(list, n)
			}
		}
	}
	return list
}

// fewFiles is how many files and folders are made stable one by one, at most, where the file
// system can be made stable at once. With more of them they need not be listed.
const fewFiles = 16

// Flush implements block.Flusher. It cannot be interrupted: what it has begun it must
// end, for the next one would not know.
func (t *Tree) Flush(context.Context) error {
	c := t.dirty.take()
	defer t.dirty.flushed()
	if t.dirty.syncsAll && t.needsAll(c) {
		return t.syncAll()
	}
	for b := range c.files.all {
		if err := t.syncFile(b); err != nil {
			return err
		}
	}
	for n := range c.dirs {
		if err := t.syncDir(n); err != nil {
			return err
		}
	}
	return nil
}

// needsAll reports whether there is too much to make it stable one by one, or a file has been
// closed since it was written.
func (t *Tree) needsAll(c changes) bool {
	if c.all || c.files.count+len(c.dirs) > fewFiles {
		return true
	}
	for b := range c.files.all {
		if t.cache.noted(b) != c.period {
			return true
		}
	}
	return false
}

// syncFile makes the file of a block stable, if it still has one.
func (t *Tree) syncFile(b int64) error {
	l := t.lock(b)
	l.RLock()
	defer l.RUnlock()
	ok, err := t.known.has(b)
	if !ok || err != nil {
		return err
	}
	h, err := t.open(b, false)
	if err != nil {
		return err
	}
	defer h.release()
	if err := h.Sync(); err != nil {
		return fmt.Errorf("tree: make a block stable: %w", err)
	}
	return nil
}

// syncDir makes a folder stable.
func (t *Tree) syncDir(n node) error {
	if err := t.fs.SyncDir(t.dir(n)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("tree: make a folder stable: %w", err)
	}
	return nil
}

// syncAll makes everything stable.
func (t *Tree) syncAll() error {
	if err := t.fs.SyncAll(); err != nil {
		return fmt.Errorf("tree: make the file system stable: %w", err)
	}
	return nil
}

// stable makes blocks stable, from first to last, which have just been written, and the
// folders on the way to them.
func (t *Tree) stable(first, last int64) error {
	if t.dirty.syncsAll && (last-first >= fewFiles || t.wasClosed(first, last)) {
		if err := t.syncAll(); err != nil {
			return fmt.Errorf("%w: %w", block.ErrNotStable, err)
		}
		return nil
	}
	for b := first; b <= last; b++ {
		if err := t.syncFile(b); err != nil {
			return fmt.Errorf("%w: %w", block.ErrNotStable, err)
		}
		if b&(fan-1) != fan-1 && b < last {
			continue // the next one is in the same folder
		}
		if err := t.stableDir(leaf(b)); err != nil {
			return err
		}
	}
	return nil
}

// wasClosed reports whether the file of a block, from first to last, has been closed since it
// was written.
func (t *Tree) wasClosed(first, last int64) bool {
	for b := first; b <= last; b++ {
		if t.cache.noted(b) == 0 {
			return true
		}
	}
	return false
}

// stableDir makes a folder stable, and those on the way to it, as far as they
// were changed.
func (t *Tree) stableDir(n node) error {
	for ; n.level <= t.levels; n = n.above() {
		if !t.dirty.hasDir(n) {
			continue
		}
		if err := t.syncDir(n); err != nil {
			return fmt.Errorf("%w: %w", block.ErrNotStable, err)
		}
	}
	return nil
}
