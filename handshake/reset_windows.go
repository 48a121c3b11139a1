package handshake

import (
	"errors"
	"syscall"
)

// isReset tells a connection that the peer has reset.
func isReset(err error) bool {
	return errors.Is(err, syscall.WSAECONNRESET) || errors.Is(err, syscall.WSAECONNABORTED)
}
