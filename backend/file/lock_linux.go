package file

import "golang.org/x/sys/unix"

// Locks that belong to an open file, not to a process.
const (
	ofdSetLock = unix.F_OFD_SETLK
	ofdGetLock = unix.F_OFD_GETLK
)
