package server

import "golang.org/x/sys/unix"

// peerGone tells whether the peer of a socket has closed its side.
func peerGone(fd int) bool {
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}, 0)
	return err == nil && n > 0
}
