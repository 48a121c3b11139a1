// Package sock is what is done with sockets that the kernel's driver and this process both
// have.
package sock

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"nbd.example/nbd/proto"
)

// With calls f with a file's descriptor, which stays open meanwhile.
func With(file *os.File, f func(fd int) error) error {
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

// ForKernel returns a copy of a connection's socket that the kernel's driver takes, and
// closes the connection; or nil if the connection has none.
func ForKernel(conn net.Conn) (*os.File, error) {
	var raw syscall.RawConn
	var err error
	switch c := conn.(type) {
	case *net.TCPConn:
		raw, err = c.SyscallConn()
	case *net.UnixConn:
		raw, err = c.SyscallConn()
	default:
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var copied int
	var failed error
	err = raw.Control(func(fd uintptr) {
		if copied, failed = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 3); failed != nil {
			return
		}
		// Who waits in the kernel does not care, but os.NewFile would hand a socket that
		// does not block to the runtime's poller, which would wake up with each packet.
		failed = unix.SetNonblock(copied, false)
	})
	if err = errors.Join(err, failed); err != nil {
		return nil, fmt.Errorf("copy a socket: %w", err)
	}
	conn.Close()
	return os.NewFile(uintptr(copied), "socket of a kernel device"), nil
}

// HungUp reports whether a socket is of no more use: its peer has hung up, or the kernel
// has given it up.
func HungUp(file *os.File) bool {
	dead := false
	err := With(file, func(fd int) error {
		events, err := hangUps(fd)
		dead = events != 0
		return err
	})
	return dead || err != nil
}

// hangUps returns which ends of a socket are over: unix.POLLRDHUP if the peer sends no more,
// unix.POLLHUP if both are.
func hangUps(fd int) (events int16, err error) {
	p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
	for {
		if _, err = unix.Poll(p, 0); err != unix.EINTR {
			return p[0].Revents, err
		}
	}
}

// End ends connections, for all who have their sockets. The peers learn of it at once, also
// those that do not read: the kernel sends elsewhere what it has lost, and of what was sent
// here nothing must be carried out after that. The end of a unix socket is seen at once. The
// end of a TCP stream would wait behind the data for which the peer has no room; so these
// are dropped, and the peer gets a reset.
//
// With them go answers that have arrived. So if it was the peer who ended the connection, as
// servers do in good order, the kernel gets as long as patience, for all of them together, to
// read what is left: nothing can be sent here any more, and it comes to the end at once
// unless it has no time to read.
func End(files []*os.File, patience time.Duration) {
	until := time.Now().Add(patience)
	var read []*os.File // that the kernel may have to read from
	for _, f := range files {
		With(f, func(fd int) error {
			if events, _ := hangUps(fd); events&(unix.POLLRDHUP|unix.POLLHUP) == unix.POLLRDHUP && isTCP(fd) {
				read = append(read, f)
			}
			return unix.Shutdown(fd, unix.SHUT_RDWR) // wakes who waits on it
		})
	}
	for _, f := range read {
		With(f, func(fd int) error { return awaitRead(fd, until) })
	}
	for _, f := range files {
		With(f, func(fd int) error {
			if isTCP(fd) {
				return abort(fd)
			}
			return nil
		})
	}
}

func isTCP(fd int) bool {
	protocol, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)
	return err == nil && protocol == unix.IPPROTO_TCP
}

// awaitRead waits until somebody has read all that has arrived on a socket.
func awaitRead(fd int, until time.Time) error {
	for {
		n, err := unix.IoctlGetInt(fd, unix.SIOCINQ)
		if n == 0 || err != nil || time.Now().After(until) {
			return err
		}
		time.Sleep(time.Millisecond)
	}
}

// abort is what RFC 9293 calls ABORT, on a socket that others have, too: see connect(2),
// AF_UNSPEC. Some kernels, 6.4 among them, refuse it as long as somebody waits on the
// socket, who has been woken.
func abort(fd int) error {
	none := unix.RawSockaddr{Family: unix.AF_UNSPEC}
	for try := 0; ; try++ {
		_, _, err := unix.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&none)), unsafe.Sizeof(none))
		switch {
		case err == 0:
			return nil
		case err != unix.EBUSY || try == abortTries:
			return os.NewSyscallError("connect", err)
		}
		time.Sleep(time.Millisecond)
	}
}

// abortTries bounds how often abort is tried, a millisecond apart.
const abortTries = 100

// Leave takes Leave of the server on a socket that the kernel has not taken, and closes
// it. proto.md, "Request message", NBD_CMD_DISC.
func Leave(file *os.File) {
	With(file, func(fd int) error {
		return unix.Sendto(fd, proto.AppendRequest(nil, &proto.Request{Command: proto.CmdDisc}), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, nil)
	})
	file.Close()
}

// Inode returns the number that the system gave a socket, or 0.
func Inode(file *os.File) uint64 {
	var st unix.Stat_t
	if With(file, func(fd int) error { return unix.Fstat(fd, &st) }) != nil {
		return 0
	}
	return st.Ino
}

// Dialer returns what connects with keepalive and TCP_USER_TIMEOUT. A connection on
// which nothing moves for as long as patience is broken, whether the server's machine
// is gone or only its program does not read any more: by then the kernel has given up
// its requests, too.
func Dialer(patience time.Duration) func(ctx context.Context, network, address string) (net.Conn, error) {
	d := &net.Dialer{KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: 10 * time.Second, Interval: 5 * time.Second, Count: 6}}
	d.Control = func(network, _ string, c syscall.RawConn) error {
		if network != "tcp" && network != "tcp4" && network != "tcp6" {
			return nil
		}
		var failed error
		err := c.Control(func(fd uintptr) {
			failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(patience.Milliseconds()))
		})
		return errors.Join(err, failed)
	}
	return d.DialContext
}
