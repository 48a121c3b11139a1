//go:build unix && !linux

package server

import "golang.org/x/sys/unix"

// peerGone tells whether the peer of a socket has closed its side, and sent nothing before that
// has not been read.
func peerGone(fd int) bool {
	n, _, err := unix.Recvfrom(fd, make([]byte, 1), unix.MSG_PEEK|unix.MSG_DONTWAIT)
	return n == 0 && err == nil || err == unix.ECONNRESET
}
