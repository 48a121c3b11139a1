//go:build unix

package main

import (
	"os"
	"os/signal"
	"syscall"
)

// hangup asks for the configuration to be read again.
var hangup os.Signal = syscall.SIGHUP

var endSignals = []os.Signal{syscall.SIGTERM, syscall.SIGINT}

// ignoreSignals ignores what must not end a server: the reference's SIGUSR1,
// and a log whose reader has gone.
func ignoreSignals() { signal.Ignore(syscall.SIGUSR1, syscall.SIGPIPE) }
