//go:build dragonfly || freebsd || netbsd || openbsd

package file

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// lock takes a shared lock, so that those who want a file for themselves are
// refused, and refuse. Of disks the kernel keeps account.
func (f *File) lock() error {
	if f.device {
		return nil
	}
	for {
		err := unix.Flock(int(f.fd), unix.LOCK_SH|unix.LOCK_NB)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.EWOULDBLOCK):
			return fmt.Errorf("%w: another program uses the image for itself; stop it, or override with the parameter force", unix.EBUSY)
		}
		return nil // taken, or a file system without locks
	}
}

func (f *File) lockGrowth() error { return nil }
