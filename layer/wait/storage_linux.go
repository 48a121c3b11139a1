package wait

import (
	"errors"
	"fmt"
	"os"
	"syscall"
)

// punch makes a hole.
func punch(f *os.File, off, n int64) error {
	const keepSize, hole = 1, 2 // FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE
	c, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = c.Control(func(fd uintptr) {
		for {
			if failed = syscall.Fallocate(int(fd), keepSize|hole, off, n); failed != syscall.EINTR {
				return
			}
		}
	})
	if err == nil {
		err = failed
	}
	if errors.Is(err, syscall.EOPNOTSUPP) || errors.Is(err, syscall.ENOSYS) {
		return fmt.Errorf("fallocate: %w", errors.ErrUnsupported)
	}
	return os.NewSyscallError("fallocate", err)
}

// datasync makes the contents stable, and leaves the times alone.
func datasync(f *os.File) error {
	c, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = c.Control(func(fd uintptr) {
		for {
			if failed = syscall.Fdatasync(int(fd)); failed != syscall.EINTR {
				return
			}
		}
	})
	if err == nil {
		err = failed
	}
	return os.NewSyscallError("fdatasync", err)
}
