package hooks

import (
	"os/exec"
	"syscall"
)

// apart keeps a console's signals from the helper: those are for the server.
func apart() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{CreationFlags: syscall.CREATE_NEW_PROCESS_GROUP}
}

// shell is a command for the command interpreter, which wants its line as it is.
func shell(text string) *exec.Cmd {
	cmd := exec.Command("cmd.exe")
	cmd.SysProcAttr = &syscall.SysProcAttr{CmdLine: "cmd.exe /S /C \"" + text + "\""}
	return cmd
}

// end ends a command. There is no soft way.
func end(cmd *exec.Cmd, _ bool) { cmd.Process.Kill() }

// keepFiles does nothing: children inherit what they are given by name.
func keepFiles() {}
