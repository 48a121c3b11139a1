//go:build !linux

package kernel

import "os"

// CheckSockets says which of the sockets the driver would not take, on Linux.
func CheckSockets([]*os.File) error { return nil }
