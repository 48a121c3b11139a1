package transmission

import "golang.org/x/sys/unix"

// watch is an epoll set of its own, which knows only whose peer has hung up:
// asking costs one system call, however many members there are. The zero value
// is ready; it is closed and used again.
type watch struct {
	fd     int // valid if open
	open   bool
	events [32]unix.EpollEvent
	found  [32]int32
}

func (w *watch) add(c *conn) {
	if c.fd < 0 {
		return
	}
	if !w.open {
		fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
		if err != nil {
			c.cfg.Logger.Warn("dead connections of this export cannot be told from live ones", "error", err)
			return
		}
		w.fd, w.open = fd, true
	}
	unix.EpollCtl(w.fd, unix.EPOLL_CTL_ADD, c.fd, &unix.EpollEvent{Events: unix.EPOLLRDHUP, Fd: c.number})
}

// remove forgets c, whose socket may be closed already.
func (w *watch) remove(c *conn) {
	if w.open && c.fd >= 0 {
		unix.EpollCtl(w.fd, unix.EPOLL_CTL_DEL, c.fd, nil)
	}
}

func (w *watch) close() {
	if w.open {
		unix.Close(w.fd)
		w.open = false
	}
}

// hungUp returns the numbers of some of those that have hung up. The slice is
// w's own.
func (w *watch) hungUp() []int32 {
	if !w.open {
		return nil
	}
	n, err := unix.EpollWait(w.fd, w.events[:], 0)
	for err == unix.EINTR {
		n, err = unix.EpollWait(w.fd, w.events[:], 0)
	}
	for i := range n {
		w.found[i] = w.events[i].Fd
	}
	return w.found[:n]
}
