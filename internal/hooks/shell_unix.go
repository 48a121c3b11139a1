//go:build unix

package hooks

import (
	"os/exec"
	"syscall"
)

// apart keeps a terminal's signals from the helper: those are for the server.
func apart() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }

// shell is a command for the shell, in a session of its own.
func shell(text string) *exec.Cmd {
	cmd := exec.Command("/bin/sh", "-c", text)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	return cmd
}

// end sends a signal to a command's session.
func end(cmd *exec.Cmd, hard bool) {
	sig := syscall.SIGTERM
	if hard {
		sig = syscall.SIGKILL
	}
	syscall.Kill(-cmd.Process.Pid, sig)
}
