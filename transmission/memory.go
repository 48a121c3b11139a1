package transmission

import (
	"slices"
	"sync"
	"sync/atomic"
)

// Memory bounds what the requests of many connections take together. Nobody gets
// more than is left for the others: with the limit of 1 GiB, a first greedy client
// gets all that its connection may have, the fortieth 25 MiB. A request of up to
// 256 KiB of a connection that has nothing is always let in, so that no client can
// keep another from being served.
//
// Its methods may be called concurrently, and on nil, which bounds nothing.
type Memory struct {
	limit int64
	used  atomic.Int64

	waiters atomic.Int32 // len(waiting)
	mu      sync.Mutex
	waiting []waiter
}

// waiter is a connection that has something to do when need bytes can be had.
type waiter struct {
	c    *conn
	need int64
}

// alwaysIn is how long a request may be, in bytes, that is let in whatever others have.
const alwaysIn = 256<<10 + headroom

// NewMemory makes a Memory of limit bytes.
func NewMemory(limit int64) *Memory { return &Memory{limit: limit} }

// Used returns how many bytes are taken.
func (m *Memory) Used() int64 {
	if m == nil {
		return 0
	}
	return m.used.Load()
}

// reserve takes n bytes for somebody who has used, if there is room.
func (m *Memory) reserve(n, used int64) bool {
	if m == nil {
		return true
	}
	for {
		all := m.used.Load()
		if !m.room(n, used, all) {
			return false
		}
		if n == 0 || m.used.CompareAndSwap(all, all+n) {
			return true
		}
	}
}

// room reports whether n more bytes are little enough for somebody who has used,
// while all have that much. What is longer than half of the limit counts as half:
// it could never be let in otherwise.
func (m *Memory) room(n, used, all int64) bool {
	if used == 0 && n <= alwaysIn {
		return true
	}
	return used+min(n, m.limit/2) <= m.limit-all
}

// take takes n bytes, or gives them back if n is negative, and lets those try again
// that wait for them.
func (m *Memory) take(n int) {
	if m == nil || n == 0 {
		return
	}
	m.used.Add(int64(n))
	if n < 0 && m.waiters.Load() > 0 {
		for _, w := range m.ready() {
			w.c.retry()
		}
	}
}

// await notes that c waits for n bytes. The caller tries once more after that: they
// may have come back in between.
func (m *Memory) await(c *conn, n int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for i := range m.waiting {
		if w := &m.waiting[i]; w.c == c {
			w.need = min(w.need, n)
			return
		}
	}
	m.waiting = append(m.waiting, waiter{c, n})
	m.waiters.Store(int32(len(m.waiting)))
}

// ready takes those off the list for whom there may be room. Who finds none comes
// back, behind the others.
func (m *Memory) ready() (ready []waiter) {
	m.mu.Lock()
	defer m.mu.Unlock()
	left := m.limit - m.used.Load()
	m.waiting = slices.DeleteFunc(m.waiting, func(w waiter) bool {
		ok := min(w.need, m.limit/2) <= left
		if ok {
			left -= w.need
			ready = append(ready, w)
		}
		return ok
	})
	m.waiters.Store(int32(len(m.waiting)))
	return ready
}

// forget takes c off the list.
func (m *Memory) forget(c *conn) {
	if m == nil || m.waiters.Load() == 0 {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.waiting = slices.DeleteFunc(m.waiting, func(w waiter) bool { return w.c == c })
	m.waiters.Store(int32(len(m.waiting)))
}

// account is one connection's share for one purpose. Of its own limit one request
// is always let in.
type account struct {
	c     *conn
	used  atomic.Int64
	limit int64
	all   *Memory
}

// reserve takes n bytes, if there is room. If it is others who have what is missing,
// c is told to retry when they have given it back.
func (a *account) reserve(n int) bool {
	used := a.used.Load()
	if used > 0 && used+int64(n) > a.limit {
		return false
	}
	if !a.all.reserve(int64(n), used) {
		a.all.await(a.c, int64(n))
		if !a.all.reserve(int64(n), used) {
			return false
		}
	}
	a.used.Add(int64(n))
	return true
}

// full reports whether there is no room for anything more.
func (a *account) full() bool {
	used := a.used.Load()
	return used > 0 && (used > a.limit || !a.all.reserve(0, used))
}

// take takes n bytes that are there already, or gives them back if n is negative.
func (a *account) take(n int) {
	a.used.Add(int64(n))
	a.all.take(n)
}
