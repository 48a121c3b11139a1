//go:build unix

package helper

import "syscall"

// apart keeps a terminal's signals from the helper: those are for the server.
func apart() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }

// highestFile bounds the open files that keepFiles looks for.
const highestFile = 4096

// keepFiles keeps from what the helper starts what whoever started the server had open,
// and did not keep to itself: commands may be run as somebody else.
func keepFiles() {
	for fd := 3; fd < highestFile; fd++ {
		syscall.CloseOnExec(fd)
	}
}
