package transmission

import "golang.org/x/sys/unix"

// watch is an epoll set of its own, which knows only whose peer has hung up:
// asking costs one system call, however many members there are. The zero value
// is ready; it is closed and used again.
type watch struct {
	fd     int // valid if open
	open   bool
	events []unix.EpollEvent
	found  []int32
}

func (w *watch) add(c *conn) {
	if c.fd < 0 {
		return
	}
	if !w.open {
		fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
		if err != nil {
			c.log().Warn("dead connections of this export cannot be told from live ones", "error", err)
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

// hungUp returns the numbers of those of n members that have hung up. The slice
// is w's own.
func (w *watch) hungUp(n int) []int32 {
	if !w.open {
		return nil
	}
	if n > len(w.events) { // so that there is room for all
		w.events = make([]unix.EpollEvent, 2*n)
	}
	k, err := unix.EpollWait(w.fd, w.events, 0)
	for err == unix.EINTR {
		k, err = unix.EpollWait(w.fd, w.events, 0)
	}
	w.found = w.found[:0]
	for i := range max(k, 0) {
		w.found = append(w.found, w.events[i].Fd)
	}
	return w.found
}
