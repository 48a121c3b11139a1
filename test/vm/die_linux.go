package vm

import (
	"os/exec"
	"syscall"
)

// dieWithParent makes the kernel end a machine whose test has been killed.
func dieWithParent(cmd *exec.Cmd) { cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} }
