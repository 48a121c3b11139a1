package kernel

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// CheckSockets says which of the sockets the driver would not take, and why: it wants
// streams of TCP or unix ones, connected. MPTCP, vsock and TLS in user space need a
// process that passes the bytes on. Drivers call it.
func CheckSockets(files []*os.File) error {
	for _, f := range files {
		if f == nil {
			return errors.New("a socket is nil")
		}
		raw, err := f.SyscallConn()
		if err != nil {
			return fmt.Errorf("socket %s: %w", f.Name(), err)
		}
		problem := raw.Control(func(fd uintptr) { err = checkSocket(int(fd)) })
		if err := errors.Join(problem, err); err != nil {
			return fmt.Errorf("socket %s: %w", f.Name(), err)
		}
	}
	return nil
}

func checkSocket(fd int) error {
	domain, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
	if err != nil {
		return err
	}
	kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil {
		return err
	}
	protocol, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)
	if err != nil {
		return err
	}
	inet := domain == unix.AF_INET || domain == unix.AF_INET6
	switch {
	case kind != unix.SOCK_STREAM, domain != unix.AF_UNIX && !inet:
		return errors.New("the kernel takes only TCP and unix streams")
	case inet && protocol == unix.IPPROTO_MPTCP:
		return errors.New("it is a multipath TCP socket, and the kernel takes only TCP and unix streams: dial without MPTCP")
	case inet && protocol != unix.IPPROTO_TCP:
		return errors.New("the kernel takes only TCP and unix streams")
	}
	if _, err := unix.Getpeername(fd); err != nil {
		return fmt.Errorf("it is not connected: %w", err)
	}
	return nil
}
