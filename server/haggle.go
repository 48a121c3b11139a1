package server

import (
	"context"
	"fmt"
	"time"
)

// haggling is what ends handshakes from the outside. The connections in the
// handshake share one timer: one for each would wake the process twice for
// every connection that comes.
type haggling struct {
	conns map[*conn]context.CancelCauseFunc // guarded by Server.mu
	timer bool                              // sweep will be called
}

// beginHandshake puts c among those in the handshake.
func (s *Server) beginHandshake(c *conn, cancel context.CancelCauseFunc) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.haggling.conns[c] = cancel
	if s.closing { // hurryHandshakes came too early for this one
		time.AfterFunc(haggleGrace, func() { cancel(ErrClosed) })
	}
	if limit := c.handshakeLimit(); limit > 0 && !s.haggling.timer {
		s.haggling.timer = true
		time.AfterFunc(sweepPause(limit), s.sweepHandshakes)
	}
}

// endHandshake takes c out again.
func (s *Server) endHandshake(c *conn) {
	s.mu.Lock()
	delete(s.haggling.conns, c)
	s.mu.Unlock()
}

// handshakeLimit is how long c's handshake may take; 0 or less is for ever.
func (c *conn) handshakeLimit() time.Duration {
	return orDefault(c.cfg.HandshakeTimeout, defaultHandshakeTimeout)
}

// sweepPause is how precisely a limit is kept.
func sweepPause(limit time.Duration) time.Duration { return max(limit/8, time.Millisecond) }

// sweepHandshakes ends those that take too long, and comes back while there are
// any.
func (s *Server) sweepHandshakes() {
	s.mu.Lock()
	defer s.mu.Unlock()
	pause := time.Duration(0)
	for c, cancel := range s.haggling.conns {
		limit := c.handshakeLimit()
		switch {
		case limit <= 0:
			continue
		case !c.paused && time.Since(c.started) > limit+c.credit:
			go cancel(fmt.Errorf("the handshake took longer than %v", limit)) // it may call back
		case pause == 0 || sweepPause(limit) < pause:
			pause = sweepPause(limit)
		}
	}
	if s.haggling.timer = pause > 0; s.haggling.timer {
		time.AfterFunc(pause, s.sweepHandshakes)
	}
}

// hurryHandshakes gives clients in the handshake a moment. The caller holds s.mu.
func (s *Server) hurryHandshakes() {
	for _, cancel := range s.haggling.conns {
		time.AfterFunc(haggleGrace, func() { cancel(ErrClosed) })
	}
}
