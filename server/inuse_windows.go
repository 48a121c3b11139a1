package server

import (
	"errors"
	"syscall"
)

// inUse tells whether err says that somebody else holds what was to be opened.
func inUse(err error) bool {
	const sharingViolation, lockViolation = syscall.Errno(32), syscall.Errno(33)
	return errors.Is(err, sharingViolation) || errors.Is(err, lockViolation) ||
		errors.Is(err, syscall.EBUSY) || errors.Is(err, syscall.EAGAIN)
}
