//go:build unix

package main

import (
	"os"
	"os/signal"
	"syscall"
)

// hangup asks for the configuration to be read again.
var hangup os.Signal = syscall.SIGHUP

// mergeSignal asks for the changes that waitfile has kept to be merged.
var mergeSignal os.Signal = syscall.SIGUSR1

var endSignals = []os.Signal{syscall.SIGTERM, syscall.SIGINT}

// ignoreSignals ignores what must not end a server: a log whose reader has gone.
func ignoreSignals() { signal.Ignore(syscall.SIGPIPE) }
