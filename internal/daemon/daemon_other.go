//go:build !unix

package daemon

import "syscall"

// The system has services instead, and something that starts them.
// Supported says whether this system has a background to go to.
const Supported = false

func newSession() *syscall.SysProcAttr { return nil }

func closeOnExec(int) {}

func dropStreams() error { return nil }
