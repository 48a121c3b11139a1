//go:build unix

package daemon

import (
	"errors"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// refused tells whether a connection failed because nobody listens.
func refused(err error) bool { return errors.Is(err, syscall.ECONNREFUSED) }

// lockFolder waits for the lock on a folder, and returns a function that gives
// it up. Where there are no such locks it goes without.
func lockFolder(dir string) (unlock func()) {
	f, err := os.Open(dir)
	if err != nil {
		return func() {}
	}
	for err = unix.EINTR; err == unix.EINTR; {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
	}
	return func() { f.Close() }
}
