package socket

import (
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Conn is a connection of TCP. It is a [net.Conn] and a syscall.Conn, and behaves as those of
// package net do: methods may be called from several goroutines, a deadline that has
// passed ends what waits and what begins, and Close ends everything with [net.ErrClosed].
type Conn struct {
	fd            int
	id            uint64 // the poller's
	poller        *poller
	local, remote net.Addr

	// users counts those who are using fd. closedBit in it says that no more may come;
	// then the last one closes fd.
	users   atomic.Int64
	in, out side
	patience

	mu    sync.Mutex
	armed uint32 // the events that somebody waits for
}

const closedBit = -1 << 63

// side is one direction of a Conn.
type side struct {
	turn    sync.Mutex    // one at a time reads, or writes
	event   uint32        // of the poller
	again   chan struct{} // has room for one: look again
	expired atomic.Bool

	// Guarded by Conn.mu:
	until time.Time // zero for none
	timer *time.Timer
}

// newConn owns fd, which must not block, from then on, unless it fails.
func newConn(fd int, local, remote net.Addr) (*Conn, error) {
	p, err := shared()
	if err != nil {
		return nil, err
	}
	c := &Conn{fd: fd, poller: p, local: local, remote: remote}
	c.in = side{event: unix.EPOLLIN, again: make(chan struct{}, 1)}
	c.out = side{event: unix.EPOLLOUT, again: make(chan struct{}, 1)}
	if err := p.add(c); err != nil {
		return nil, err
	}
	_ = lobby.open() // now: a process should have as many files after its first connection as after many
	return c, nil
}

// use begins to use fd. If it returns nil, done must follow.
func (c *Conn) use() error {
	for {
		n := c.users.Load()
		if n < 0 {
			return net.ErrClosed
		}
		if c.users.CompareAndSwap(n, n+1) {
			return nil
		}
	}
}

func (c *Conn) done() {
	if c.users.Add(-1) == closedBit {
		c.poller.forget(c)
		unix.Close(c.fd)
	}
}

// Close closes the socket. What waits ends, and the descriptor is closed when nobody uses
// it any more.
func (c *Conn) Close() error {
	for {
		n := c.users.Load()
		if n < 0 {
			return c.error("close", net.ErrClosed)
		}
		if c.users.CompareAndSwap(n, n+1+closedBit) {
			break
		}
	}
	c.in.wake()
	c.out.wake()
	// This stops the timers. And who locks c.mu from here on sees that c is closed: so
	// happened does not tell the kernel about fd when that may be another one already.
	c.limit(&c.in, time.Time{})
	c.limit(&c.out, time.Time{})
	c.done()
	return nil
}

// CloseWrite tells the peer that no more will come.
func (c *Conn) CloseWrite() error {
	if err := c.use(); err != nil {
		return c.error("close", err)
	}
	defer c.done()
	return c.error("close", os.NewSyscallError("shutdown", unix.Shutdown(c.fd, unix.SHUT_WR)))
}

// Read reads what is there, waiting for the first byte.
func (c *Conn) Read(p []byte) (int, error) {
	if len(p) == 0 {
		if err := c.use(); err != nil {
			return 0, c.error("read", err)
		}
		c.done()
		return 0, nil
	}
	n, lingered := 0, false
	err := c.do(&c.in, "recvfrom", func(fd int) (err error) {
		n, _, err = unix.Recvfrom(fd, p, unix.MSG_DONTWAIT)
		if err == unix.EAGAIN && !lingered {
			if lingered = true; c.linger(false) {
				n, _, err = unix.Recvfrom(fd, p, unix.MSG_DONTWAIT)
			}
		}
		return err
	})
	switch {
	case err != nil:
		return 0, c.error("read", err)
	case n == 0:
		return 0, io.EOF
	}
	return n, nil
}

// Write writes all of p.
func (c *Conn) Write(p []byte) (int, error) {
	done := 0
	err := c.do(&c.out, "sendmsg", func(fd int) error {
		for done < len(p) {
			n, err := unix.SendmsgN(fd, p[done:], nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
			if err != nil {
				return err
			}
			done += n
		}
		return nil
	})
	return done, c.error("write", err)
}

// do calls f, which makes the named system call, until it says something else than that
// there is nothing to be had.
func (c *Conn) do(s *side, call string, f func(fd int) error) error {
	if err := c.use(); err != nil {
		return err
	}
	defer c.done()
	s.turn.Lock()
	defer s.turn.Unlock()
	if err := c.over(s); err != nil {
		return err
	}
	for {
		switch err := f(c.fd); err {
		case nil:
			return nil
		case unix.EINTR:
		case unix.EAGAIN:
			if err := c.park(s); err != nil {
				return err
			}
		default:
			return os.NewSyscallError(call, err)
		}
	}
}

// park waits until the poller says that it is worth to look again, or for the end.
func (c *Conn) park(s *side) error {
	c.mu.Lock()
	c.armed |= s.event
	err := c.poller.arm(c, c.armed)
	c.mu.Unlock()
	if err != nil {
		return err
	}
	<-s.again // an old one makes no harm: the caller looks again
	return c.over(s)
}

// over says why one side of c is not to be used any more.
func (c *Conn) over(s *side) error {
	switch {
	case c.users.Load() < 0:
		return net.ErrClosed
	case s.expired.Load():
		return os.ErrDeadlineExceeded
	}
	return nil
}

// wake makes whoever waits look again.
func (s *side) wake() {
	select {
	case s.again <- struct{}{}:
	default:
	}
}

// happened is called by the poller, which has disarmed c.
func (c *Conn) happened(events uint32) {
	if events&(unix.EPOLLERR|unix.EPOLLHUP) != 0 {
		events |= unix.EPOLLIN | unix.EPOLLOUT
	}
	c.mu.Lock()
	c.armed &^= events
	if c.armed != 0 && c.users.Load() > 0 {
		if c.poller.arm(c, c.armed) != nil {
			events, c.armed = c.armed|events, 0 // they find out by themselves
		}
	}
	c.mu.Unlock()
	for _, s := range []*side{&c.in, &c.out} {
		if events&s.event != 0 {
			s.wake()
		}
	}
}

// LocalAddr returns our address.
func (c *Conn) LocalAddr() net.Addr { return c.local }

// RemoteAddr returns the peer's address.
func (c *Conn) RemoteAddr() net.Addr { return c.remote }

// error dresses err as package net does.
func (c *Conn) error(op string, err error) error {
	if err == nil {
		return nil
	}
	return &net.OpError{Op: op, Net: c.local.Network(), Source: c.local, Addr: c.remote, Err: err}
}
