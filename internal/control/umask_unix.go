//go:build unix

package control

import "syscall"

// ownerOnly makes new files their owner's alone, until restore is called: a
// socket must not be open to others between its creation and its chmod.
func ownerOnly() (restore func()) {
	old := syscall.Umask(0o177)
	return func() { syscall.Umask(old) }
}
