// Package helper starts a program a second time, as a process that does one thing for
// the first: with rights that the first gives up, and without its sockets and memory.
//
// A Go program cannot fork, so the helper begins at main like any other. A variable of
// its environment tells it what it is: [Command] sets the variable, and [Is] asks for it,
// first of all in main. The two talk by the standard streams of the helper, which ends
// when its standard input does: that is when the first process ends, however it does so.
package helper

import (
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"syscall"
)

// Command returns what runs this program as the helper that the variable stands for.
// Signals of a terminal do not reach it.
func Command(variable string) (*exec.Cmd, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this program's file: %w", err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(environment(), variable+"=1")
	cmd.SysProcAttr = apart()
	return cmd, nil
}

// Is reports whether this process is the helper that the variable stands for. If so,
// it prepares the process: what it starts inherits neither the variable nor open files,
// and signals do not end it.
func Is(variable string) bool {
	if os.Getenv(variable) == "" {
		return false
	}
	os.Unsetenv(variable)
	keepFiles()
	// It ends with the server. Signals are caught and not ignored: what is ignored, its
	// children would ignore, too.
	signal.Notify(make(chan os.Signal, 1), os.Interrupt, syscall.SIGHUP, syscall.SIGTERM)
	return true
}

// environment is the process's own, without what a service manager has said to it
// alone.
func environment() []string {
	return slices.DeleteFunc(os.Environ(), func(v string) bool {
		return strings.HasPrefix(v, "LISTEN_") || strings.HasPrefix(v, "NOTIFY_SOCKET=") || strings.HasPrefix(v, "WATCHDOG_")
	})
}
