package transmission

import "golang.org/x/sys/unix"

// hungUp asks the kernel which members' peers have hung up. If c's own has, its
// remaining requests wait for nobody.
func hungUp(c *conn, members []*conn) (dead []*conn) {
	var room [16]unix.PollFd
	fds := room[:0]
	for _, m := range members {
		fds = append(fds, unix.PollFd{Fd: int32(m.fd), Events: unix.POLLRDHUP})
	}
	for {
		if _, err := unix.Poll(fds, 0); err != unix.EINTR {
			break
		}
	}
	for i, m := range members {
		switch gone := m.dying.Load() || fds[i].Revents&(unix.POLLRDHUP|unix.POLLHUP|unix.POLLERR) != 0; {
		case gone && m == c:
			return nil
		case gone:
			dead = append(dead, m)
		}
	}
	return dead
}
