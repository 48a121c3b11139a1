package main

import (
	"errors"
	"syscall"
)

// deleteOnClose is FILE_FLAG_DELETE_ON_CLOSE: the name of an open file cannot
// be removed.
const deleteOnClose = 0x04000000

// readOnlySystem tells whether a file is on a write-protected medium.
func readOnlySystem(err error) bool {
	const writeProtect = syscall.Errno(19)
	return errors.Is(err, writeProtect)
}

// addressInUse tells whether somebody listens there already.
func addressInUse(err error) bool {
	const addrInUse = syscall.Errno(10048)
	return errors.Is(err, addrInUse)
}
