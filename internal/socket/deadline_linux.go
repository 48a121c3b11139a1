package socket

import (
	"net"
	"time"
)

// SetDeadline sets both deadlines.
func (c *Conn) SetDeadline(t time.Time) error {
	if err := c.limit(&c.in, t); err != nil {
		return err
	}
	return c.limit(&c.out, t)
}

// SetReadDeadline sets until when reading may wait. The zero time is for ever; one that has
// passed ends what waits, and what begins from now on.
func (c *Conn) SetReadDeadline(t time.Time) error { return c.limit(&c.in, t) }

// SetWriteDeadline does the same for writing.
func (c *Conn) SetWriteDeadline(t time.Time) error { return c.limit(&c.out, t) }

func (c *Conn) limit(s *side, t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	s.until = t
	if s.timer != nil {
		s.timer.Stop()
	}
	closed := c.users.Load() < 0
	left := time.Until(t)
	switch {
	case closed || t.IsZero():
		s.expired.Store(false)
	case left <= 0:
		s.expired.Store(true)
		s.wake()
	default:
		s.expired.Store(false)
		if s.timer == nil {
			s.timer = time.AfterFunc(left, func() { c.pass(s) })
		} else {
			s.timer.Reset(left)
		}
	}
	if closed {
		return c.error("set", net.ErrClosed)
	}
	return nil
}

// pass is called by the timer, maybe late, when there is another deadline; or too early, if
// the deadline is one of the wall clock, which has been set back.
func (c *Conn) pass(s *side) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if s.until.IsZero() {
		return
	}
	if left := time.Until(s.until); left > 0 {
		s.timer.Reset(left)
		return
	}
	s.expired.Store(true)
	s.wake()
}
