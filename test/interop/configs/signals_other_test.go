//go:build !unix

package configs

import "syscall"

// Tests that send these signals are skipped here.
const (
	hangup      = syscall.SIGHUP
	mergeSignal = syscall.SIGHUP
)
