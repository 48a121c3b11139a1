//go:build !windows

package server

import (
	"errors"
	"syscall"
)

// inUse tells whether err says that somebody else holds what was to be opened.
func inUse(err error) bool {
	return errors.Is(err, syscall.EBUSY) || errors.Is(err, syscall.EAGAIN) || errors.Is(err, syscall.EWOULDBLOCK)
}
