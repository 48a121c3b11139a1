// Package ranges keeps changes of overlapping byte ranges in the order of their
// arrival, and lets all others run side by side.
//
// A client that comes back after a cut sends again what may still be under way;
// the old copy must never land on top of the new one. And neighbours in one
// block must both survive while one of them is read, modified and written.
package ranges

import "sync"

// Queue holds the changes that are under way or waiting. The zero value is
// ready. Its methods may be called concurrently.
type Queue struct {
	mu     sync.Mutex
	active []*Entry // oldest first
}

// Entry is one change. It is the caller's, who reuses it after Remove.
type Entry struct {
	// Unblocked is called, once, when the last older change that overlapped has
	// been removed; only if Add has returned false. It must not block, and
	// must not call the Queue.
	Unblocked func()

	off, end   int64
	older      int      // changes that this one waits for
	dependents []*Entry // changes that wait for this one
}

// Add registers the change of n bytes at off, and reports whether it may begin
// at once. If not, it may begin when e.Unblocked is called, and must not be
// removed before.
func (q *Queue) Add(e *Entry, off, n int64) bool {
	e.off, e.end, e.older, e.dependents = off, off+n, 0, e.dependents[:0]
	q.mu.Lock()
	var room [16]stretch
	left := append(room[:0], stretch{e.off, e.end})
	for i := len(q.active) - 1; i >= 0 && len(left) > 0; i-- {
		a := q.active[i]
		if !a.touches(left) {
			continue
		}
		a.dependents = append(a.dependents, e)
		e.older++
		left = without(left, a.off, a.end)
	}
	q.active = append(q.active, e)
	ok := e.older == 0
	q.mu.Unlock()
	return ok
}

// stretch is a part of a new change that is not yet known to wait for all older
// ones. Where it waits for one of them, it need not wait for those that are older
// still, since that one does: a thousand changes of one place would otherwise
// take half a million notes.
type stretch struct{ off, end int64 }

func (e *Entry) touches(list []stretch) bool {
	for _, s := range list {
		if s.off < e.end && e.off < s.end {
			return true
		}
	}
	return false
}

// without takes a range out of list, in place. If there is no room for one part
// more, a stretch stays whole, which is never wrong.
func without(list []stretch, off, end int64) []stretch {
	for i := 0; i < len(list); i++ {
		s := list[i]
		switch {
		case s.off >= end || off >= s.end: // apart
		case off <= s.off && s.end <= end: // all of it
			list = append(list[:i], list[i+1:]...)
			i--
		case off <= s.off:
			list[i].off = end
		case s.end <= end:
			list[i].end = off
		case len(list) < cap(list):
			list[i].end = off
			list = append(list, stretch{end, s.end})
		}
	}
	return list
}

// TryAdd registers the change if no older one overlaps it. Otherwise it reports
// false and does nothing.
func (q *Queue) TryAdd(e *Entry, off, n int64) bool {
	end := off + n
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, a := range q.active {
		if a.off < end && off < a.end {
			return false
		}
	}
	e.off, e.end, e.older, e.dependents = off, end, 0, e.dependents[:0]
	q.active = append(q.active, e)
	return true
}

// Remove ends the change and unblocks those that waited for it alone.
func (q *Queue) Remove(e *Entry) {
	q.mu.Lock()
	for i, a := range q.active {
		if a == e {
			last := len(q.active) - 1
			copy(q.active[i:], q.active[i+1:])
			q.active[last] = nil
			q.active = q.active[:last]
			break
		}
	}
	for i, d := range e.dependents {
		if d.older--; d.older == 0 {
			d.Unblocked()
		}
		e.dependents[i] = nil
	}
	e.dependents = e.dependents[:0]
	q.mu.Unlock()
}

// Busy reports whether any change is under way or waiting.
func (q *Queue) Busy() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.active) > 0
}
