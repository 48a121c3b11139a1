//go:build unix

package hooks

import (
	"os/exec"
	"syscall"
)

// apart keeps a terminal's signals from the helper: those are for the server.
func apart() *syscall.SysProcAttr { return &syscall.SysProcAttr{Setpgid: true} }

// highestFile bounds the open files that keepFiles looks for.
const highestFile = 4096

// keepFiles keeps from commands what whoever started the server had open, and did not
// keep to itself: they may be run as somebody else.
func keepFiles() {
	for fd := 3; fd < highestFile; fd++ {
		syscall.CloseOnExec(fd)
	}
}

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
