package socket

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// SyscallConn gives access to the descriptor.
func (c *Conn) SyscallConn() (syscall.RawConn, error) {
	if err := c.use(); err != nil {
		return nil, c.error("raw", err)
	}
	defer c.done()
	return (*raw)(c), nil
}

// raw is the descriptor of a Conn.
type raw Conn

// Control calls f with the descriptor, which stays open meanwhile.
func (r *raw) Control(f func(fd uintptr)) error {
	c := (*Conn)(r)
	if err := c.use(); err != nil {
		return c.error("raw-control", err)
	}
	defer c.done()
	f(uintptr(c.fd))
	return nil
}

// Read calls f when there may be something to read, until it returns true.
func (r *raw) Read(f func(fd uintptr) bool) error {
	c := (*Conn)(r)
	return c.error("raw-read", c.call(&c.in, f))
}

// Write calls f when there may be room to write, until it returns true.
func (r *raw) Write(f func(fd uintptr) bool) error {
	c := (*Conn)(r)
	return c.error("raw-write", c.call(&c.out, f))
}

func (c *Conn) call(s *side, f func(fd uintptr) bool) error {
	return c.do(s, "raw", func(fd int) error {
		if f(uintptr(fd)) {
			return nil
		}
		return unix.EAGAIN
	})
}
