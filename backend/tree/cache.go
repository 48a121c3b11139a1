package tree

import (
	"errors"
	"sync"
	"sync/atomic"
)

// cache keeps files open. Its shards have a lock each, so that connections do not
// wait for each other, and none is held while the system is asked.
type cache struct {
	shards []cacheShard // a power of two
}

// cacheShard has the open files of some blocks. When they are too many it closes one that
// has not been used since it was last looked at.
type cacheShard struct {
	limit int

	mu    sync.RWMutex
	files map[int64]*handle // by block
	ring  []*handle         // the same, in the order in which they are looked at
	hand  int               // index in ring of the next one
	turn  int               // counts the files that came while there was no room
}

// handle is an open file. Who uses it holds the lock of its block, and does not touch it after
// it was released.
type handle struct {
	File
	block int64
	place int          // in the ring, guarded by the shard's lock
	users atomic.Int32 // grows only under the shard's lock
	used  atomic.Bool  // since the hand came by
	once  bool         // not in the cache: closed when it is released
	whole atomic.Bool  // the file has its full length
	noted atomic.Int64 // the period of dirty in which the block was last noted
}

var handles sync.Pool // of *handle, for files that are used once

const (
	cacheShards = 16
	fewOpen     = 16 * cacheShards // with less they are not divided
)

func newCache(limit int) cache {
	n := cacheShards
	if limit < fewOpen {
		n = 1
	}
	c := cache{make([]cacheShard, n)}
	for i := range c.shards {
		c.shards[i].limit, c.shards[i].files = limit/n, map[int64]*handle{}
	}
	return c
}

func (c *cache) shard(b int64) *cacheShard { return &c.shards[b&int64(len(c.shards)-1)] }

// get returns the open file of a block, or nil. It is to be released.
func (c *cache) get(b int64) *handle {
	s := c.shard(b)
	s.mu.RLock()
	h := s.files[b]
	if h != nil {
		h.users.Add(1)
	}
	s.mu.RUnlock()
	if h != nil && !h.used.Load() {
		h.used.Store(true)
	}
	return h
}

// put adds the file of a block, which has just been opened, and returns it or the
// one that somebody else has put there meanwhile. It is to be released. If keep is not set
// and there is no room, only one of some files takes the place of another: who
// reads more files than can be open finds some of them open the next time.
func (c *cache) put(b int64, f File, keep bool) *handle {
	s := c.shard(b)
	var over []*handle
	s.mu.Lock()
	h := s.files[b]
	twice := h != nil
	switch {
	case twice:
		h.users.Add(1)
	case keep || s.room():
		over = s.evict(s.limit - 1)
		h = &handle{File: f, block: b, place: len(s.ring)}
		h.users.Add(1)
		s.files[b] = h
		s.ring = append(s.ring, h)
	default:
		if h, _ = handles.Get().(*handle); h == nil {
			h = &handle{once: true}
		}
		h.File, h.block = f, b
	}
	s.mu.Unlock()
	if twice {
		f.Close() // opened once more, and not used
	}
	closeAll(over)
	return h
}

// room reports whether there is room for one more file, or it is time to make some. The
// shard is locked.
func (s *cacheShard) room() bool {
	if len(s.ring) < s.limit {
		return true
	}
	s.turn++
	return s.turn%8 == 0
}

// release ends the use of a file. That may leave too many open, until the next is put.
func (h *handle) release() {
	if h.once {
		h.Close()
		h.File = nil
		h.whole.Store(false)
		h.noted.Store(0)
		handles.Put(h)
		return
	}
	h.users.Add(-1)
}

// evict takes out files that are not in use, until only limit are left or all are in use.
// The shard is locked.
func (s *cacheShard) evict(limit int) (over []*handle) {
	for looks := 2 * len(s.ring); looks > 0 && len(s.ring) > limit; looks-- {
		if s.hand >= len(s.ring) {
			s.hand = 0
		}
		h := s.ring[s.hand]
		if h.users.Load() > 0 || h.used.Swap(false) {
			s.hand++
			continue
		}
		over = append(over, h)
		s.remove(h)
	}
	return over
}

// remove takes out a file. The shard is locked.
func (s *cacheShard) remove(h *handle) {
	delete(s.files, h.block)
	last := len(s.ring) - 1
	s.ring[last].place = h.place
	s.ring[h.place], s.ring[last] = s.ring[last], nil
	s.ring = s.ring[:last]
}

// closeAll closes files. What that says of earlier writes, a flush says too.
func closeAll(list []*handle) {
	for _, h := range list {
		h.Close()
	}
}

// shrink closes all files that are not in use.
func (c *cache) shrink() {
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.Lock()
		over := s.evict(0)
		s.mu.Unlock()
		closeAll(over)
	}
}

// noted returns the period of dirty in which the file of a block was last noted, since it was
// opened. It is 0 if there was none, or the file is not open.
func (c *cache) noted(b int64) int64 {
	s := c.shard(b)
	s.mu.RLock()
	defer s.mu.RUnlock()
	if h := s.files[b]; h != nil {
		return h.noted.Load()
	}
	return 0
}

// drop closes the file of a block, which is to be removed. The caller holds the lock of the
// block for writing, so nobody uses it.
func (c *cache) drop(b int64) {
	s := c.shard(b)
	s.mu.Lock()
	h := s.files[b]
	if h != nil {
		s.remove(h)
	}
	s.mu.Unlock()
	if h != nil {
		h.Close()
	}
}

// close closes all.
func (c *cache) close() error {
	var errs []error
	for i := range c.shards {
		for _, h := range c.shards[i].files {
			errs = append(errs, h.Close())
		}
		c.shards[i].files, c.shards[i].ring = nil, nil
	}
	return errors.Join(errs...)
}
