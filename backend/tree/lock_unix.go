//go:build linux || darwin || freebsd || openbsd || netbsd || dragonfly

package tree

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// syncsFolders says that folders can be made stable.
const syncsFolders = true

// lock keeps others from changing the tree, or from using it while it is changed.
func lock(f *os.File, shared bool) error {
	how := unix.LOCK_EX
	if shared {
		how = unix.LOCK_SH
	}
	err := unix.Flock(int(f.Fd()), how|unix.LOCK_NB)
	switch {
	case errors.Is(err, unix.EWOULDBLOCK):
		// EBUSY tells a server that reloads to close its own device first.
		return fmt.Errorf("%w: it is in use by another device; override with the parameter force", unix.EBUSY)
	case errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOLCK), errors.Is(err, unix.EBADF):
		return nil // a file system without locks, or one that locks no folders
	}
	return os.NewSyscallError("flock", err)
}
