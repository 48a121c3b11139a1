//go:build linux || darwin || freebsd || openbsd || netbsd || dragonfly

package wait

import (
	"errors"
	"os"
	"syscall"
)

// syncsFolders says that the name of a new file is stable once its folder is.
const syncsFolders = true

// lock keeps others from using the diff: two devices on one would destroy it.
func lock(f *os.File) error {
	c, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	if err := c.Control(func(fd uintptr) { failed = syscall.Flock(int(fd), syscall.LOCK_EX|syscall.LOCK_NB) }); err != nil {
		return err
	}
	switch {
	case errors.Is(failed, syscall.EWOULDBLOCK):
		return errInUse
	case errors.Is(failed, syscall.ENOSYS), errors.Is(failed, syscall.EOPNOTSUPP):
		return nil // a file system without locks
	}
	return os.NewSyscallError("flock", failed)
}
