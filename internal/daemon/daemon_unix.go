//go:build unix

package daemon

import (
	"os"
	"syscall"
)

// Supported says whether this system has a background to go to.
const Supported = true

func newSession() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setsid: true} }

func closeOnExec(fd int) { syscall.CloseOnExec(fd) }

// dropStreams leads the standard streams to /dev/null, and leaves the folder that
// the program was started in, so that it can be unmounted.
func dropStreams() error {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer null.Close()
	for fd := range 3 {
		if err := dup2(int(null.Fd()), fd); err != nil {
			return os.NewSyscallError("dup2", err)
		}
	}
	return os.Chdir("/")
}
