//go:build unix

package daemon

import (
	"context"
	"errors"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// refused tells whether a connection failed because nobody listens.
func refused(err error) bool { return errors.Is(err, syscall.ECONNREFUSED) }

// lockFolder waits for the lock on a folder, and returns a function that gives
// it up. Where there are no such locks it goes without, and so it does when patience is
// over, or ctx: whoever may read the folder can lock it, and hold up everybody.
func lockFolder(ctx context.Context, dir string, patience time.Duration) (unlock func()) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	f, err := os.Open(dir)
	if err != nil {
		return func() {}
	}
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err != unix.EINTR && err != unix.EWOULDBLOCK {
			break
		}
		select {
		case <-time.After(5 * time.Millisecond): // the system has no way to wait for this and for ctx
			continue
		case <-ctx.Done():
		}
		break
	}
	return func() { f.Close() }
}
