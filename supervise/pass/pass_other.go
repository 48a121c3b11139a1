//go:build !linux

package pass

import (
	"errors"
	"net"
	"os"
)

func inherit([]inheritable) []Socket { return nil }

// Exec returns an error.
func Exec(string, []string, []string, []Socket) error { return errors.ErrUnsupported }

// Store is that of systemd, which is not here.
type Store struct{}

// Systemd returns nil.
func Systemd() *Store { return nil }

// Keep returns an error.
func (*Store) Keep(string, *os.File) error { return errors.ErrUnsupported }

// Drop returns an error.
func (*Store) Drop(string) error { return errors.ErrUnsupported }

// MaxRights is that of Linux.
const MaxRights = 253

// Send returns an error.
func Send(*net.UnixConn, []byte, []Socket) error { return errors.ErrUnsupported }

// Receive reads bytes alone.
func Receive(c *net.UnixConn, b []byte) (int, []*os.File, error) {
	n, err := c.Read(b)
	return n, nil, err
}
