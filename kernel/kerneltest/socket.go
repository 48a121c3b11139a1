package kerneltest

import (
	"errors"
	"fmt"
	"net"
	"os"
)

// socket is a reference to a socket, as sockfd_lookup gives it to the driver.
type socket struct {
	conn  net.Conn
	inode uint64
}

// takeAll takes references to sockets.
func takeAll(files []*os.File) ([]*socket, error) {
	var list []*socket
	for _, f := range files {
		s, err := take(f)
		if err != nil {
			closeAll(list)
			return nil, err
		}
		list = append(list, s)
	}
	return list, nil
}

// take takes a reference to a socket, which must be a stream of TCP or a unix one.
func take(f *os.File) (*socket, error) {
	if f == nil {
		return nil, errors.New("a socket is nil")
	}
	conn, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("%s is no socket that the kernel can use: %w", f.Name(), err)
	}
	switch c := conn.(type) {
	case *net.TCPConn:
	case *net.UnixConn:
		if c.LocalAddr().Network() == "unix" {
			break
		}
		conn.Close()
		return nil, fmt.Errorf("%s is a %s socket, no stream: the kernel takes TCP and unix streams", f.Name(), c.LocalAddr().Network())
	default:
		conn.Close()
		return nil, fmt.Errorf("%s is a %T: the kernel takes TCP and unix streams", f.Name(), c)
	}
	return &socket{conn: conn, inode: inode(f)}, nil
}

// shutdown ends the connection, for all who have references.
func (s *socket) shutdown() {
	if c, ok := s.conn.(interface {
		CloseRead() error
		CloseWrite() error
	}); ok {
		c.CloseWrite() // it may be shut down already
		c.CloseRead()
	}
}

// closeAll gives up references. Those that are nil were given up.
func closeAll(list []*socket) {
	for i, s := range list {
		if s != nil {
			s.conn.Close()
			list[i] = nil
		}
	}
}
