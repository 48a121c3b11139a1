package transmission

import "sync/atomic"

// Live lets others see what a connection does while it is served. The zero value
// is ready; each connection has one of its own. Its methods may be called
// concurrently, and on nil.
//
// What the reader counts is published when it waits for more requests, not for
// each request, so that to be looked at costs a connection next to nothing.
type Live struct {
	c                              atomic.Pointer[conn]
	cut                            atomic.Bool
	requests, errors, read, writes atomic.Uint64
}

// watch begins to show c.
func (l *Live) watch(c *conn) {
	if l == nil {
		return
	}
	l.c.Store(c)
	if l.cut.Load() {
		c.fail(ErrCut)
	}
}

// Cut ends the connection at once: what was read and is not begun is not carried
// out, and nothing more is answered. Serve returns ErrCut when what was begun has
// ended; until then newer changes of others wait where they overlap it. A
// connection that is not served yet is cut when it is.
func (l *Live) Cut() {
	l.cut.Store(true)
	if c := l.c.Load(); c != nil {
		c.fail(ErrCut)
	}
}

// publish shows what the reader has counted so far.
func (c *conn) publish() {
	l := c.s.Live
	if l == nil {
		return
	}
	l.requests.Store(c.stats.Requests)
	l.errors.Store(c.stats.Errors)
	l.read.Store(c.stats.BytesRead)
	l.writes.Store(c.stats.BytesWritten)
}

// Stats returns what the connection has done so far. All is zero before it is
// served.
func (l *Live) Stats() Stats {
	if l == nil {
		return Stats{}
	}
	st := Stats{Requests: l.requests.Load(), Errors: l.errors.Load(), BytesRead: l.read.Load(), BytesWritten: l.writes.Load()}
	if c := l.c.Load(); c != nil {
		st.Errors += c.wstats.errors.Load()
		st.BytesRead += c.wstats.read.Load()
		st.BytesWritten += c.wstats.written.Load()
	}
	return st
}

// InFlight returns how many requests have been read and not been answered, as
// far as the socket took the answers.
func (l *Live) InFlight() int {
	if l == nil {
		return 0
	}
	c := l.c.Load()
	if c == nil {
		return 0
	}
	return int(max(c.pending.Load(), 0))
}
