package helper

import "syscall"

// apart keeps a console's signals from the helper: those are for the server.
func apart() *syscall.SysProcAttr {
	return &syscall.SysProcAttr{CreationFlags: syscall.CREATE_NEW_PROCESS_GROUP}
}

// keepFiles does nothing: children inherit what they are given by name.
func keepFiles() {}
