//go:build unix

package configs

import "syscall"

const (
	hangup      = syscall.SIGHUP
	mergeSignal = syscall.SIGUSR1
)
