package socket

import (
	"net"

	"golang.org/x/sys/unix"
)

// Own takes the socket of nc out of package net, and returns it as a [Conn], if nc is a
// connection of TCP; nc is closed then. One of a unix socket is returned as a [Unix].
// Others are returned as they are, and so is one for which the system has no room.
func Own(nc net.Conn) net.Conn {
	if u, ok := nc.(*net.UnixConn); ok {
		return ownUnix(u)
	}
	t, ok := nc.(*net.TCPConn)
	if !ok || t.LocalAddr() == nil || t.RemoteAddr() == nil {
		return nc
	}
	raw, err := t.SyscallConn()
	if err != nil {
		return nc
	}
	fd, failed := -1, error(nil)
	if err := raw.Control(func(s uintptr) { fd, failed = unix.FcntlInt(s, unix.F_DUPFD_CLOEXEC, 0) }); err != nil || failed != nil {
		return nc
	}
	c, err := newConn(fd, t.LocalAddr(), t.RemoteAddr())
	if err != nil {
		unix.Close(fd)
		return nc
	}
	nc.Close()
	return c
}
