//go:build unix

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// marked reports whether the process has the name that systemd spares at shutdown.
func marked(name string) bool { return strings.HasPrefix(name, "@") }

// mark gives this process a name that begins with @, by starting it again. The number
// of the process stays what it is.
func (p *program) mark() int {
	self, err := os.Executable()
	if err != nil {
		p.log.Error(fmt.Sprintf("mark this process: %v", err))
		return exitError
	}
	name := filepath.Base(p.env.name)
	args := append([]string{"@" + strings.TrimPrefix(name, "n")}, p.args...)
	err = syscall.Exec(self, args, os.Environ())
	p.log.Error(fmt.Sprintf("mark this process: start %s again: %v", self, err))
	return exitError
}
