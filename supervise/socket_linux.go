package supervise

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

// forKernel returns a copy of a connection's socket that the kernel's driver takes, and
// closes the connection; or nil if the connection has none.
func forKernel(conn net.Conn) (*os.File, error) {
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

// hungUp reports whether a socket is of no more use: its peer has hung up, or the kernel
// has given it up.
func hungUp(file *os.File) bool {
	dead := false
	err := withFD(file, func(fd int) error {
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

// kill ends a connection, for all who have its socket. The peer learns of it at once, also
// if it does not read: the kernel sends elsewhere what it has lost, and of what was sent
// here nothing must be carried out after that. The end of a unix socket is seen at once. The
// end of a TCP stream would wait behind the data for which the peer has no room; so these
// are dropped, and the peer gets a reset.
//
// With them go answers that have arrived. So if it was the peer who ended the connection, as
// servers do in good order, the kernel gets as long as patience to read what is left: it
// sends nothing elsewhere before it has come to the end.
func kill(file *os.File, patience time.Duration) {
	withFD(file, func(fd int) error {
		events, _ := hangUps(fd)
		unix.Shutdown(fd, unix.SHUT_RDWR) // wakes who waits on it
		protocol, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)
		if err != nil || protocol != unix.IPPROTO_TCP {
			return err
		}
		if events&(unix.POLLRDHUP|unix.POLLHUP) == unix.POLLRDHUP {
			awaitRead(fd, patience)
		}
		return abort(fd)
	})
}

// awaitRead waits until somebody has read all that has arrived on a socket.
func awaitRead(fd int, patience time.Duration) {
	for until := time.Now().Add(patience); time.Now().Before(until); time.Sleep(time.Millisecond) {
		if n, err := unix.IoctlGetInt(fd, unix.SIOCINQ); n == 0 || err != nil {
			return
		}
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

// leave takes leave of the server on a socket that the kernel has not taken, and closes
// it. proto.md, "Request message", NBD_CMD_DISC.
func leave(file *os.File) {
	withFD(file, func(fd int) error {
		return unix.Sendto(fd, proto.AppendRequest(nil, &proto.Request{Command: proto.CmdDisc}), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, nil)
	})
	file.Close()
}

// inode returns the number that the system gave a socket, or 0.
func inode(file *os.File) uint64 {
	var st unix.Stat_t
	if withFD(file, func(fd int) error { return unix.Fstat(fd, &st) }) != nil {
		return 0
	}
	return st.Ino
}

// dialer returns what connects with keepalive and TCP_USER_TIMEOUT. A connection on
// which nothing moves for as long as patience is broken, whether the server's machine
// is gone or only its program does not read any more: by then the kernel has given up
// its requests, too.
func dialer(patience time.Duration) func(ctx context.Context, network, address string) (net.Conn, error) {
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

// processStart returns when a process began, in clock ticks since the machine did, or 0
// if there is no such process, or only its remains.
func processStart(pid int) uint64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	return parseStat(b)
}

// lockByte takes a lock on one byte of a file, until the file is closed, if nobody else
// has it.
func lockByte(f *os.File, at int64) (bool, error) {
	err := withFD(f, func(fd int) error {
		return unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK, Start: at, Len: 1})
	})
	if err == unix.EAGAIN || err == unix.EACCES {
		return false, nil
	}
	return err == nil, err
}

// restrict makes a unix socket that has no name yet its owner's alone.
func restrict(fd int) { unix.Fchmod(fd, 0o600) }
