// Package process names processes beyond the reuse of their numbers.
//
// A number says little of a process that has ended: another one may have it by now. Together
// with the time when the process began it names one process only, as long as the machine
// runs. Elsewhere than on Linux no process is known to run.
package process

import (
	"bytes"
	"os"
	"strconv"
)

// Process is one process.
type Process struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"` // in clock ticks since the machine started
}

// This is the process that calls it.
func This() (Process, error) { return Of(os.Getpid()) }

// Of is the one that has a number now. Its Start is 0 if there is none, or only its
// remains. After an error nobody knows.
func Of(pid int) (Process, error) {
	start, err := startOf(pid)
	return Process{PID: pid, Start: start}, err
}

// Running reports whether the process still runs. If that cannot be found out, because
// memory or descriptors are short, it does: nobody takes its devices away then.
func (p Process) Running() bool {
	if p.PID <= 0 || p.Start == 0 {
		return false
	}
	start, err := startOf(p.PID)
	return err != nil || start == p.Start
}

// parseStat takes the start of a process from /proc/PID/stat, 0 if it has ended. See
// proc(5): the second field is a name in brackets, which may hold anything.
func parseStat(b []byte) uint64 {
	end := bytes.LastIndexByte(b, ')')
	if end < 0 {
		return 0
	}
	fields := bytes.Fields(b[end+1:])
	const state, start = 0, 22 - 3 // behind the brackets
	if len(fields) <= start || bytes.ContainsAny(fields[state], "ZXx") {
		return 0
	}
	n, err := strconv.ParseUint(string(fields[start]), 10, 64)
	if err != nil {
		return 0
	}
	return n
}
