//go:build unix

package main

import (
	"errors"
	"syscall"
)

// deleteOnClose is a flag that other systems need.
const deleteOnClose = 0

// readOnlySystem tells whether a file is on a read-only file system or medium.
func readOnlySystem(err error) bool { return errors.Is(err, syscall.EROFS) }

// addressInUse tells whether somebody listens there already.
func addressInUse(err error) bool { return errors.Is(err, syscall.EADDRINUSE) }
