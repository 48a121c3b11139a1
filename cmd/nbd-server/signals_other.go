//go:build !unix

package main

import (
	"os"
	"syscall"
)

// hangup never comes on this system.
var hangup os.Signal = syscall.SIGHUP

var endSignals = []os.Signal{os.Interrupt, syscall.SIGTERM}

func ignoreSignals() {}
