//go:build !unix

package daemon

import (
	"context"
	"errors"
	"syscall"
	"time"
)

// refused tells whether a connection failed because nobody listens.
func refused(err error) bool {
	const wsaeconnrefused = syscall.Errno(10061)
	return errors.Is(err, wsaeconnrefused)
}

func lockFolder(context.Context, string, time.Duration) (unlock func()) { return func() {} }
