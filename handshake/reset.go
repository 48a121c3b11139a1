//go:build !windows

package handshake

import (
	"errors"
	"syscall"
)

// isReset tells a connection that the peer has reset.
func isReset(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}
