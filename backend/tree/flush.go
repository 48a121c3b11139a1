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

func (s *blockSet) add(b int64) {
	if s.folders == nil {
		s.folders = map[int64]*children{}
	}
	c := s.folders[b>>fanBits]
	if c == nil {
		c = new(children)
		s.folders[b>>fanBits] = c
	}
	if i := b & (fan - 1); !c.has(i) {
		c.add(i)
		s.count++
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
	many  bool // too many blocks to list them: files is empty
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
	h.noted.Store(d.flushes.Load() + 1)
	if d.many {
		return
	}
	d.files.add(h.block)
	d.count.Store(int64(d.files.count))
	if d.files.count > mostFiles && d.syncsAll {
		d.files, d.many = blockSet{}, true
	}
}

// few reports whether so few files were written that a flush makes them stable one by one. They
// must stay open till then.
func (d *dirty) few() bool { return d.count.Load() < fewFiles }

// dir notes that a name in a folder has come or gone.
func (d *dirty) dir(n node) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.dirs == nil {
		d.dirs = map[node]struct{}{}
	}
	d.dirs[n] = struct{}{}
}

// take hands over all that is dirty.
func (d *dirty) take() (files blockSet, many bool, dirs map[node]struct{}) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.flushes.Add(1)
	d.count.Store(0)
	files, many, dirs = d.files, d.many, d.dirs
	d.files, d.many, d.dirs, d.flushing = blockSet{}, false, nil, dirs
	return files, many, dirs
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

const (
	fewFiles  = 16      // files and folders that are made stable one by one, at most
	mostFiles = 1 << 16 // files that are listed, where the file system can be made stable at once
)

// Flush implements block.Flusher. It cannot be interrupted: what it has begun it must
// end, for the next one would not know.
func (t *Tree) Flush(context.Context) error {
	files, many, dirs := t.dirty.take()
	defer t.dirty.flushed()
	all := many || files.count+len(dirs) > fewFiles
	for b := range files.all {
		// The system may have forgotten, with a file that was closed, that it could
		// not be written back. The file system remembers.
		all = all || !t.cache.has(b)
	}
	if all && t.dirty.syncsAll {
		return t.syncAll()
	}
	for b := range files.all {
		if err := t.syncFile(b); err != nil {
			return err
		}
	}
	for n := range dirs {
		if err := t.syncDir(n); err != nil {
			return err
		}
	}
	return nil
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

// stable makes blocks stable, from first to last, and the folders on the way to them.
func (t *Tree) stable(first, last int64) error {
	if last-first >= fewFiles && t.dirty.syncsAll {
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
