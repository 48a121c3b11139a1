package relay

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// answerRoom is how many bytes of answers the kernel may leave unread before the relay
// waits, as far as net.core.wmem_max allows. The default is less than one long answer.
const answerRoom = 1 << 20

// Relay passes bytes between a connection to a server and the kernel. Make one with
// [New]. All methods may be called concurrently.
type Relay struct {
	conn   net.Conn      // to the server
	near   *net.UnixConn // our end of the pair
	far    *os.File      // the kernel's end
	hangup *os.File      // an epoll set that is readable once the kernel has hung up
	wait   time.Duration // how long one side waits for the other to end

	requests, replies []byte // buffers, each its goroutine's own

	last lastRequest
	disc atomic.Bool // what the kernel sent last is NBD_CMD_DISC

	done     chan struct{}
	released sync.Once

	mu      sync.Mutex
	pumps   int // directions that have not ended
	workers int // goroutines that have not ended
	settled bool
	err     error
	timer   *time.Timer // nil until one side has ended
}

// New starts to relay for conn, which is in the transmission phase: a *tls.Conn after its
// handshake, or any other. The relay owns conn from now on, also if New fails; deadlines
// are removed. Early are bytes that the server sent already, which were read with the
// handshake; the kernel gets them first.
//
// The caller hands Kernel to the driver, closes it, and calls Close in the end.
func New(conn net.Conn, early []byte) (*Relay, error) { return start(conn, early, linger) }

// start is New with another time to wait.
func start(conn net.Conn, early []byte, wait time.Duration) (*Relay, error) {
	r := &Relay{
		conn: conn, wait: wait, done: make(chan struct{}), pumps: 2, workers: 3,
		requests: make([]byte, BufferSize), replies: make([]byte, BufferSize),
	}
	err := r.open()
	if err == nil {
		err = conn.SetDeadline(time.Time{})
	}
	if err != nil {
		r.release()
		if r.far != nil {
			r.far.Close()
		}
		return nil, fmt.Errorf("relay for the kernel: %w", err)
	}
	go r.toServer()
	go r.toKernel(early)
	go r.watch()
	return r, nil
}

// open makes the pair of sockets and the epoll set.
func (r *Relay) open() error {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("socketpair: %w", err)
	}
	r.far = os.NewFile(uintptr(fds[0]), "kernel's end of a relay")
	near := os.NewFile(uintptr(fds[1]), "relay")
	defer near.Close()
	c, err := net.FileConn(near)
	if err != nil {
		return err
	}
	r.near = c.(*net.UnixConn)
	if err := r.near.SetWriteBuffer(answerRoom); err != nil {
		return err
	}
	return r.openHangup()
}

// openHangup makes the epoll set. The runtime's own poller waits for it, as for any
// file, so that nobody holds a thread.
func (r *Relay) openHangup() error {
	set, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return fmt.Errorf("epoll_create1: %w", err)
	}
	if err := unix.SetNonblock(set, true); err != nil {
		unix.Close(set)
		return err
	}
	r.hangup = os.NewFile(uintptr(set), "hang-up of a relay")
	raw, err := r.near.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		e := unix.EpollEvent{Events: unix.EPOLLRDHUP, Fd: int32(fd)}
		failed = unix.EpollCtl(set, unix.EPOLL_CTL_ADD, int(fd), &e)
	})
	return errors.Join(err, failed)
}

// Kernel returns the end of the socket pair that is for the kernel. It is the caller's to
// close once the driver has taken it: as long as the caller holds it, the relay cannot
// see that the driver has dropped it. Close closes it, too.
func (r *Relay) Kernel() *os.File { return r.far }

// Done is closed when the relay has ended: when both connections are closed, and all its
// goroutines have ended.
func (r *Relay) Done() <-chan struct{} { return r.done }

// Err tells why the relay has ended: nil after the kernel sent NBD_CMD_DISC and the
// server closed, or while the relay runs. See [ErrDropped] and those beside it for the
// others; what breaks the connection to the server is wrapped as it is.
func (r *Relay) Err() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.settled {
		return nil
	}
	return r.err
}

// Close ends the relay at once: what it holds is dropped, the server sees a reset, the
// kernel a dead connection. It returns when nothing is left of it. To detach in good
// order let the kernel disconnect, and wait for Done.
func (r *Relay) Close() error {
	r.abort(ErrClosed)
	r.far.Close()
	<-r.done
	return nil
}

// Drop tells the relay that the kernel has given up the connection, or is about to, and not
// by NBD_CMD_DISC. What the relay holds is dropped, the server sees a reset: after Drop has
// returned nothing reaches the network any more. Kernel stays open, as a dead connection.
func (r *Relay) Drop() { r.abort(ErrDropped) }

// toServer passes on what the kernel sends.
func (r *Relay) toServer() {
	defer r.leave(true)
	for {
		n, err := r.near.Read(r.requests)
		if n > 0 {
			// Before the server can answer it by closing.
			r.disc.Store(r.last.add(r.requests[:n]))
			if _, err := r.conn.Write(r.requests[:n]); err != nil {
				// The server may have answered before it closed. The other direction finds
				// out, and ends all.
				r.hurry(fmt.Errorf("send to the server: %w", err))
				return
			}
		}
		if err != nil { // the end, or a reset if it left answers unread
			r.kernelEnded()
			return
		}
	}
}

// kernelEnded ends the connection to the server after the kernel's.
func (r *Relay) kernelEnded() {
	if !r.disc.Load() {
		r.abort(ErrDropped)
		return
	}
	r.hurry(ErrStuck)
	if c, ok := r.conn.(interface{ CloseWrite() error }); ok {
		c.CloseWrite() // if it fails, the other direction fails too
		return
	}
	r.conn.Close() // a connection that has no halves
}

// toKernel passes on what the server sends. It goes on reading when the kernel does not:
// closing a socket with unread bytes resets it, and the server might not see what it was
// sent last.
func (r *Relay) toKernel(early []byte) {
	defer r.leave(true)
	var gone error
	if len(early) > 0 {
		_, gone = r.near.Write(early)
	}
	for {
		n, err := r.conn.Read(r.replies)
		if n > 0 && gone == nil {
			_, gone = r.near.Write(r.replies[:n])
		}
		if err != nil {
			r.serverEnded(err)
			return
		}
	}
}

// serverEnded ends the kernel's connection after the server's.
func (r *Relay) serverEnded(err error) {
	switch {
	case r.disc.Load(): // what the server was asked to do, and many close without close_notify
		r.settle(nil)
	case err == io.EOF:
		r.settle(fmt.Errorf("relay: %w", ErrServerClosed))
	default:
		r.abort(fmt.Errorf("receive from the server: %w", err))
		return
	}
	r.hurry(ErrStuck)
	r.near.CloseWrite()
}

// watch waits for the kernel to hang up, which toServer cannot see while it sends.
func (r *Relay) watch() {
	defer r.leave(false)
	raw, err := r.hangup.SyscallConn()
	if err != nil {
		r.abort(err)
		return
	}
	var events [1]unix.EpollEvent
	err = raw.Read(func(fd uintptr) bool {
		n, err := unix.EpollWait(int(fd), events[:], 0)
		return n > 0 || err != nil && err != unix.EINTR
	})
	if err == nil {
		r.hurry(ErrDropped)
	}
}

// hurry bounds how long the rest may take. If that is not enough, the relay ends because
// of cause, that of the first call.
func (r *Relay) hurry(cause error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.timer != nil || r.workers == 0 {
		return
	}
	r.timer = time.AfterFunc(r.wait, func() {
		if r.disc.Load() {
			cause = ErrStuck // whoever noticed first: the kernel is done with it
		}
		r.abort(cause)
	})
}

// settle notes why the relay ends. What is noted first stays.
func (r *Relay) settle(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.settled {
		r.settled, r.err = true, err
	}
}

// abort ends both connections at once.
func (r *Relay) abort(err error) {
	r.settle(fmt.Errorf("relay: %w", err))
	r.release()
}

// release closes everything but the kernel's end. When it returns all is closed, whoever
// did it.
func (r *Relay) release() {
	r.released.Do(func() {
		reset(r.conn)
		if r.near != nil {
			r.near.Close()
		}
		if r.hangup != nil {
			r.hangup.Close()
		}
	})
}

// reset closes a connection without a word, so that nothing which waits to be sent
// arrives. Closing a TLS connection itself would send, and wait for it.
func reset(c net.Conn) {
	if outer, ok := c.(*tls.Conn); ok {
		c = outer.NetConn()
	}
	if tcp, ok := c.(interface{ SetLinger(sec int) error }); ok {
		tcp.SetLinger(0)
	}
	c.Close()
}

// leave counts a goroutine that ends. The last direction closes what is open in good
// order, the last goroutine ends the relay. It must be deferred: a panic, which what the
// server has sent may cause, ends this relay alone.
func (r *Relay) leave(pump bool) {
	if v := recover(); v != nil {
		r.abort(fmt.Errorf("panic: %v\n%s", v, debug.Stack()))
	}
	r.mu.Lock()
	if pump {
		r.pumps--
	}
	idle := pump && r.pumps == 0
	r.mu.Unlock()
	if idle {
		if r.disc.Load() {
			r.conn.Close() // all is said, by both: this does not wait
		}
		r.release()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.workers--
	if r.workers > 0 {
		return
	}
	if r.timer != nil {
		r.timer.Stop()
	}
	r.settled = true
	close(r.done)
}
