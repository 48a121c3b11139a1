//go:build unix

package hooks

import (
	"os/exec"
	"syscall"
)

// shell is a command for the shell, in a session of its own.
func shell(text string) *exec.Cmd {
	cmd := exec.Command("/bin/sh", "-c", text)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	return cmd
}

// tree is a command with all that it starts: the number of its session.
type tree int

// launch starts a command.
func launch(cmd *exec.Cmd) (tree, error) {
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	return tree(cmd.Process.Pid), nil
}

// end sends it a signal.
func (t tree) end(hard bool) {
	sig := syscall.SIGTERM
	if hard {
		sig = syscall.SIGKILL
	}
	syscall.Kill(-int(t), sig)
}

// release is called when the command has ended. What it has left goes on.
func (tree) release() {}
