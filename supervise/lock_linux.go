package supervise

import (
	"os"

	"golang.org/x/sys/unix"

	"nbd.example/nbd/supervise/sock"
)

// lockByte takes a lock on one byte of a file, until the file is closed, if nobody else
// has it.
func lockByte(f *os.File, at int64) (bool, error) {
	err := sock.With(f, func(fd int) error {
		return unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK, Start: at, Len: 1})
	})
	if err == unix.EAGAIN || err == unix.EACCES {
		return false, nil
	}
	return err == nil, err
}

// restrict makes a unix socket that has no name yet its owner's alone.
func restrict(fd int) { unix.Fchmod(fd, 0o600) }
