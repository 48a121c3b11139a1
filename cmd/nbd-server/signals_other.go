//go:build !unix

package main

import (
	"os"
	"syscall"
)

// hangup never comes on this system.
var hangup os.Signal = syscall.SIGHUP

// mergeSignal never comes, either.
var mergeSignal os.Signal = syscall.Signal(-1)

var endSignals = []os.Signal{os.Interrupt, syscall.SIGTERM}

func ignoreSignals() {}
