package supervise

import (
	"fmt"
	"net"
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

// execWith replaces the process and passes the sockets on. It returns only if that
// fails.
func execWith(program string, args, env []string, sockets []Socket) error {
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
	env = slices.DeleteFunc(slices.Clone(env), func(s string) bool { return strings.HasPrefix(s, socketsVariable+"=") })
	err := syscall.Exec(program, args, append(env, socketsVariable+"="+strings.Join(words, ",")))
	for _, s := range sockets {
		setCloseOnExec(s.File, unix.FD_CLOEXEC)
	}
	return err
}

// systemdStore is the service manager's.
type systemdStore struct{ path string }

// SystemdStore is the file descriptor store of the service manager, for a service with
// FileDescriptorStoreMax. It returns nil where there is none.
func SystemdStore() Store {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" || path[0] != '/' && path[0] != '@' {
		return nil
	}
	return &systemdStore{path}
}

// Keep passes a copy of f. The manager drops it by itself when it hangs up.
func (s *systemdStore) Keep(name string, f *os.File) error {
	return sock.With(f, func(fd int) error {
		return s.send("FDSTORE=1\nFDNAME="+name, unix.UnixRights(fd))
	})
}

// Drop has the copy closed.
func (s *systemdStore) Drop(name string) error {
	return s.send("FDSTOREREMOVE=1\nFDNAME="+name, nil)
}

// send is what sd_pid_notify_with_fds(3) does.
func (s *systemdStore) send(text string, rights []byte) error {
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

// sendSockets writes a line with sockets that belong to it.
func sendSockets(c *net.UnixConn, line []byte, sockets []Socket) error {
	var fds []int
	var copies []*os.File
	defer func() {
		for _, f := range copies {
			f.Close()
		}
	}()
	for _, s := range sockets {
		err := sock.With(s.File, func(fd int) error {
			n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
			if err == nil {
				copies = append(copies, os.NewFile(uintptr(n), s.Name))
				fds = append(fds, n)
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	_, _, err := c.WriteMsgUnix(line, unix.UnixRights(fds...), nil)
	return err
}

// receiveSockets reads some bytes, and the sockets that came with them.
func receiveSockets(c *net.UnixConn, b []byte) (int, []*os.File, error) {
	oob := make([]byte, unix.CmsgSpace(4*maxRights))
	n, nn, _, _, err := c.ReadMsgUnix(b, oob)
	if err != nil {
		return n, nil, err
	}
	messages, err := unix.ParseSocketControlMessage(oob[:nn])
	var files []*os.File
	for i := range messages {
		fds, failed := unix.ParseUnixRights(&messages[i])
		if failed != nil {
			continue // not descriptors
		}
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			files = append(files, os.NewFile(uintptr(fd), "socket of a kernel device"))
		}
	}
	return n, files, err
}
