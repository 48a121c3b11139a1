//go:build !linux

package supervise

import (
	"errors"
	"net"
	"os"
)

func inherit([]inheritable) []Socket { return nil }

func execWith(string, []string, []string, []Socket) error { return errors.ErrUnsupported }

// SystemdStore returns nil: there is no systemd here.
func SystemdStore() Store { return nil }

func sendSockets(*net.UnixConn, []byte, []Socket) error { return errors.ErrUnsupported }

func receiveSockets(c *net.UnixConn, b []byte) (int, []*os.File, error) {
	n, err := c.Read(b)
	return n, nil, err
}
