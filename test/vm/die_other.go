//go:build !linux

package vm

import "os/exec"

// dieWithParent does nothing here: the machine ends itself after half an hour.
func dieWithParent(*exec.Cmd) {}
