//go:build !unix

package daemon

import (
	"errors"
	"syscall"
)

// refused tells whether a connection failed because nobody listens.
func refused(err error) bool {
	const wsaeconnrefused = syscall.Errno(10061)
	return errors.Is(err, wsaeconnrefused)
}

func lockFolder(string) (unlock func()) { return func() {} }
