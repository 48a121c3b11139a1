package supervise

import (
	"bytes"
	"os"
	"strconv"
)

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

// thisProcess names the one that runs this.
func thisProcess() (Process, error) {
	pid := os.Getpid()
	start, err := processStart(pid)
	return Process{PID: pid, Start: start}, err
}

// Running reports whether the process that p names still runs. If that cannot be found out,
// because memory or descriptors are short, it does: nobody takes its devices away then.
func (p Process) Running() bool {
	if p.PID <= 0 || p.Start == 0 {
		return false
	}
	start, err := processStart(p.PID)
	return err != nil || start == p.Start
}
