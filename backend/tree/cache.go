package tree

import (
	"container/list"
	"errors"
	"sync"
	"sync/atomic"
)

// cache keeps files open. The zero value, with a limit, is ready.
type cache struct {
	limit int

	mu    sync.Mutex
	files map[int64]*handle // by block
	idle  list.List         // of *handle, the one that was used last at the end
}

// handle is an open file.
type handle struct {
	File
	block int64
	users int           // guarded by the cache's mutex
	idle  *list.Element // nil while there are users
	gone  bool          // out of the cache: to be closed by the last user
	whole atomic.Bool   // the file has its full length
}

// get returns the open file of a block, or nil.
func (c *cache) get(b int64) *handle {
	c.mu.Lock()
	defer c.mu.Unlock()
	h := c.files[b]
	if h == nil {
		return nil
	}
	c.use(h)
	return h
}

// use counts a user in. c.mu is held.
func (c *cache) use(h *handle) {
	h.users++
	if h.idle != nil {
		c.idle.Remove(h.idle)
		h.idle = nil
	}
}

// put adds the file of a block, which has just been opened, and returns it or the
// one that somebody else has put there meanwhile.
func (c *cache) put(b int64, f File) *handle {
	c.mu.Lock()
	defer c.mu.Unlock()
	h := c.files[b]
	if h != nil {
		f.Close() // opened once more, and not used
	} else {
		if c.files == nil {
			c.files = map[int64]*handle{}
		}
		h = &handle{File: f, block: b}
		c.files[b] = h
	}
	c.use(h)
	return h
}

// release counts a user out, and closes what is too much.
func (c *cache) release(h *handle) {
	c.mu.Lock()
	h.users--
	last := h.users == 0
	if last && !h.gone {
		h.idle = c.idle.PushBack(h)
	}
	over := len(c.files) > c.limit
	c.mu.Unlock()
	if last && h.gone {
		h.Close()
	}
	if over {
		c.shrink(c.limit)
	}
}

// shrink closes those that have not been used for longest, until only limit are open,
// or all have users.
func (c *cache) shrink(limit int) {
	c.mu.Lock()
	var over []*handle
	for len(c.files) > limit && c.idle.Len() > 0 {
		old := c.idle.Remove(c.idle.Front()).(*handle)
		old.idle = nil
		delete(c.files, old.block)
		over = append(over, old)
	}
	c.mu.Unlock()
	for _, h := range over {
		h.Close() // what it says of earlier writes, a flush says too
	}
}

// has reports whether the file of a block is open.
func (c *cache) has(b int64) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.files[b] != nil
}

// drop closes the file of a block, which is to be removed.
func (c *cache) drop(b int64) {
	c.mu.Lock()
	h := c.files[b]
	if h != nil {
		delete(c.files, b)
		if h.gone = true; h.idle != nil {
			c.idle.Remove(h.idle)
			h.idle = nil
		}
	}
	last := h != nil && h.users == 0
	c.mu.Unlock()
	if last {
		h.Close()
	}
}

// close closes all.
func (c *cache) close() error {
	var errs []error
	for _, h := range c.files {
		errs = append(errs, h.Close())
	}
	c.files = nil
	return errors.Join(errs...)
}
