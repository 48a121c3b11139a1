package hangups

import (
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// Poller sees sockets hang up, without reading from them: their data are the kernel's.
// It is one epoll set, for which the runtime's own poller waits, so that no thread is
// held, and nothing is done for each packet that comes in.
type Poller struct {
	fd    int
	file  *os.File
	ended chan struct{}

	mu      sync.Mutex
	last    uint64
	watched map[uint64]func()
}

// New starts one. It must be closed.
func New() (*Poller, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("fcntl", err)
	}
	p := &Poller{fd: fd, file: os.NewFile(uintptr(fd), "hang-ups"), ended: make(chan struct{}), watched: map[uint64]func(){}}
	raw, err := p.file.SyscallConn()
	if err != nil {
		p.file.Close()
		return nil, err
	}
	go func() {
		defer close(p.ended)
		raw.Read(func(uintptr) bool { return !p.poll() })
	}()
	return p, nil
}

// poll tells of all hang-ups that there are, and reports whether to go on.
func (p *Poller) poll() bool {
	var events [16]unix.EpollEvent
	for {
		n, err := unix.EpollWait(p.fd, events[:], 0)
		if err != nil && err != unix.EINTR {
			return false
		}
		if n == 0 {
			return true
		}
		for _, e := range events[:max(n, 0)] {
			p.mu.Lock()
			f := p.watched[uint64(uint32(e.Fd))|uint64(uint32(e.Pad))<<32]
			p.mu.Unlock()
			if f != nil {
				f()
			}
		}
	}
}

// Watch has f called, from the poller's goroutine, when f's peer or the kernel has hung
// up, once for each step of that. It must not wait. The file must not be closed before
// the function that Watch returns has been called.
func (p *Poller) Watch(file *os.File, f func()) (stop func(), err error) {
	p.mu.Lock()
	p.last++
	id := p.last
	p.watched[id] = f
	p.mu.Unlock()
	forget := func() {
		p.mu.Lock()
		delete(p.watched, id)
		p.mu.Unlock()
	}
	control := func(op int) error {
		return withFD(file, func(fd int) error {
			e := unix.EpollEvent{Events: unix.EPOLLRDHUP | unix.EPOLLET, Fd: int32(uint32(id)), Pad: int32(uint32(id >> 32))}
			return os.NewSyscallError("epoll_ctl", unix.EpollCtl(p.fd, op, fd, &e))
		})
	}
	if err := control(unix.EPOLL_CTL_ADD); err != nil {
		forget()
		return nil, fmt.Errorf("watch a socket: %w", err)
	}
	return func() {
		forget()
		// The file is one of several for the socket: that this one will be closed would
		// not take it off the set.
		control(unix.EPOLL_CTL_DEL)
	}, nil
}

// Close ends the poller. No function of Watch is called after it has returned.
func (p *Poller) Close() {
	p.file.Close()
	<-p.ended
}

// withFD calls f with the file's descriptor, which stays open meanwhile.
func withFD(file *os.File, f func(fd int) error) error {
	raw, err := file.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	if err := raw.Control(func(fd uintptr) { failed = f(int(fd)) }); err != nil {
		return err
	}
	return failed
}
