package pass

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"nbd.example/nbd/supervise/sock"
)

// inherit makes files of descriptors, if they are sockets.
func inherit(list []inheritable) []Socket {
	var all []Socket
	for _, d := range list {
		var st unix.Stat_t
		if unix.Fstat(d.fd, &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFSOCK {
			continue
		}
		unix.CloseOnExec(d.fd)
		all = append(all, Socket{d.name, os.NewFile(uintptr(d.fd), d.name)})
	}
	return all
}

// Exec replaces the process and passes the sockets on. It returns only if that
// fails.
func Exec(program string, args, env []string, sockets []Socket) error {
	var words []string
	setCloseOnExec := func(f *os.File, flag int) {
		sock.With(f, func(fd int) error {
			_, err := unix.FcntlInt(uintptr(fd), unix.F_SETFD, flag)
			return err
		})
	}
	for _, s := range sockets {
		sock.With(s.File, func(fd int) error {
			words = append(words, fmt.Sprintf("%s=%d", s.Name, fd))
			return nil
		})
		setCloseOnExec(s.File, 0)
	}
	env = slices.DeleteFunc(slices.Clone(env), func(s string) bool { return strings.HasPrefix(s, Variable+"=") })
	err := syscall.Exec(program, args, append(env, Variable+"="+strings.Join(words, ",")))
	for _, s := range sockets {
		setCloseOnExec(s.File, unix.FD_CLOEXEC)
	}
	return err
}

// Store is the file descriptor store of the service manager, for a service with
// FileDescriptorStoreMax.
type Store struct{ path string }

// Systemd returns the store of the service manager, nil where there is none.
func Systemd() *Store {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" || path[0] != '/' && path[0] != '@' {
		return nil
	}
	return &Store{path}
}

// Keep passes a copy of f. The manager drops it by itself when it hangs up.
func (s *Store) Keep(name string, f *os.File) error {
	return sock.With(f, func(fd int) error {
		return s.send("FDSTORE=1\nFDNAME="+name, unix.UnixRights(fd))
	})
}

// Drop has the copy closed.
func (s *Store) Drop(name string) error {
	return s.send("FDSTOREREMOVE=1\nFDNAME="+name, nil)
}

// send is what sd_pid_notify_with_fds(3) does.
func (s *Store) send(text string, rights []byte) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	// A name that begins with @ is an abstract one, which this knows.
	if err := unix.Sendmsg(fd, []byte(text), rights, &unix.SockaddrUnix{Name: s.path}, unix.MSG_NOSIGNAL); err != nil {
		return fmt.Errorf("the service manager's store: %w", os.NewSyscallError("sendmsg", err))
	}
	return nil
}
