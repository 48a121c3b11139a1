package server

import (
	"net"
	"syscall"

	"golang.org/x/sys/unix"
)

// peerProcess tells who has connected to a unix socket: nil if nc is none, or is closed. It is
// one system call.
func peerProcess(nc net.Conn) *Process {
	if _, ok := nc.LocalAddr().(*net.UnixAddr); !ok {
		return nil
	}
	c, ok := nc.(syscall.Conn)
	if !ok {
		return nil
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return nil
	}
	var p *Process
	raw.Control(func(fd uintptr) {
		if u, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
			p = &Process{PID: int(u.Pid), UID: u.Uid, GID: u.Gid}
		}
	})
	return p
}
