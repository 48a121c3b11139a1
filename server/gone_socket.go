//go:build unix || windows

package server

import (
	"net"
	"syscall"
)

// hungUp tells whether the peer of nc has closed its side, as far as peerGone can see that.
func hungUp(nc net.Conn) (is bool) {
	s, ok := nc.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := s.SyscallConn()
	if err != nil {
		return false
	}
	err = raw.Control(func(fd uintptr) { is = peerGone(int(fd)) })
	return err == nil && is
}
