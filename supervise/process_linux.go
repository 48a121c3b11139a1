package supervise

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"nbd.example/nbd/supervise/sock"
)

// processStart returns when a process began, in clock ticks since the machine did, or 0
// if there is no such process, or only its remains. After an error nobody knows.
func processStart(pid int) (uint64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	switch {
	case err == nil:
		return parseStat(b), nil
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ESRCH):
		return 0, nil
	}
	return 0, err
}

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
