package pass

import (
	"net"
	"os"

	"golang.org/x/sys/unix"

	"nbd.example/nbd/supervise/sock"
)

// MaxRights is how many descriptors Linux passes at a time (SCM_MAX_FD).
const MaxRights = 253

// Send writes a line to another process, with the sockets that belong to it.
func Send(c *net.UnixConn, line []byte, sockets []Socket) error {
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
	n, _, err := c.WriteMsgUnix(line, unix.UnixRights(fds...), nil)
	if err == nil && n < len(line) { // the socket had no room for all of it; the sockets have gone
		_, err = c.Write(line[n:])
	}
	return err
}

// Receive reads some bytes, and the sockets that came with them.
func Receive(c *net.UnixConn, b []byte) (int, []*os.File, error) {
	oob := make([]byte, unix.CmsgSpace(4*MaxRights))
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
