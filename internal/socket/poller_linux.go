package socket

import (
	"os"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

// poller waits for all sockets of the process. It is made for the first one, and stays.
type poller struct {
	fd int

	mu    sync.Mutex
	last  uint64
	conns map[uint64]*Conn // by the number that their events carry
}

var shared = sync.OnceValues(newPoller)

func newPoller() (*poller, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	p := &poller{fd: fd, conns: map[uint64]*Conn{}}
	go p.run()
	return p, nil
}

// event is what c is told to the kernel as.
func (c *Conn) event(events uint32) unix.EpollEvent {
	return unix.EpollEvent{Events: events | unix.EPOLLONESHOT, Fd: int32(c.id), Pad: int32(c.id >> 32)}
}

// add makes c known, which nobody waits for yet.
func (p *poller) add(c *Conn) error {
	p.mu.Lock()
	p.last++
	c.id = p.last
	p.conns[c.id] = c
	p.mu.Unlock()
	e := c.event(0)
	if err := unix.EpollCtl(p.fd, unix.EPOLL_CTL_ADD, c.fd, &e); err != nil {
		p.forget(c)
		return os.NewSyscallError("epoll_ctl", err)
	}
	return nil
}

// forget lets go of c, before its descriptor is closed. The kernel would take it out of the
// set by itself, but not in time: a thread that looks at it in epoll_wait holds it for that
// moment, and if it is closed just then, it really is when that thread leaves epoll_wait,
// maybe never. The peer would wait for the end. (Seen on 6.18.)
func (p *poller) forget(c *Conn) {
	unix.EpollCtl(p.fd, unix.EPOLL_CTL_DEL, c.fd, nil)
	p.mu.Lock()
	delete(p.conns, c.id)
	p.mu.Unlock()
}

// arm asks for one event of those in events, which replace what was asked before.
func (p *poller) arm(c *Conn, events uint32) error {
	e := c.event(events)
	return os.NewSyscallError("epoll_ctl", unix.EpollCtl(p.fd, unix.EPOLL_CTL_MOD, c.fd, &e))
}

// run waits and tells, for ever.
func (p *poller) run() {
	var events [64]unix.EpollEvent
	for {
		n, err := unix.EpollWait(p.fd, events[:], -1)
		if err != nil && err != unix.EINTR {
			panic(os.NewSyscallError("epoll_wait", err)) // nothing but a fault of ours: all sockets would stand still
		}
		for i := range max(n, 0) {
			e := &events[i]
			p.mu.Lock()
			c := p.conns[uint64(uint32(e.Fd))|uint64(uint32(e.Pad))<<32]
			p.mu.Unlock()
			if c != nil {
				c.happened(e.Events)
			}
		}
		// Those that were woken run on this thread first. If it waited again at once, they
		// would stay here, and other threads had to be woken to fetch them.
		runtime.Gosched()
	}
}
