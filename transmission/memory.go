package transmission

import "sync/atomic"

// Memory bounds what the requests of many connections take together. Its methods
// may be called concurrently, and on nil, which bounds nothing.
type Memory struct {
	limit int64
	used  atomic.Int64
}

// NewMemory makes a Memory of limit bytes.
func NewMemory(limit int64) *Memory { return &Memory{limit: limit} }

// Used returns how many bytes are taken.
func (m *Memory) Used() int64 {
	if m == nil {
		return 0
	}
	return m.used.Load()
}

func (m *Memory) take(n int) {
	if m != nil {
		m.used.Add(int64(n))
	}
}

// full reports whether n more bytes are too many.
func (m *Memory) full(n int) bool { return m != nil && m.used.Load()+int64(n) > m.limit }

// account is one connection's share for one purpose. Somebody who has nothing
// yet is always let in with one request, so that no client can keep another
// from being served at all.
type account struct {
	used  atomic.Int64
	limit int64
	all   *Memory
}

// room reports whether n more bytes may be taken.
func (a *account) room(n int) bool {
	used := a.used.Load()
	return used == 0 || used+int64(n) <= a.limit && !a.all.full(n)
}

// take takes n bytes, or gives them back if n is negative.
func (a *account) take(n int) {
	a.used.Add(int64(n))
	a.all.take(n)
}
