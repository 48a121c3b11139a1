package harness

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// Usage is what a process holds, as Linux tells it.
type Usage struct {
	RSS     int64 // bytes of memory that it has in use
	Threads int
	Files   int // open files
}

// Usage reads what the process holds now. Only on Linux.
func (p *Process) Usage() Usage {
	p.t.Helper()
	dir := fmt.Sprintf("/proc/%d", p.PID())
	files, err := os.ReadDir(dir + "/fd")
	if err != nil {
		p.t.Fatal(err)
	}
	status, err := os.ReadFile(dir + "/status")
	if err != nil {
		p.t.Fatal(err)
	}
	return Usage{
		RSS:     field(p.t, string(status), "VmRSS") << 10,
		Threads: int(field(p.t, string(status), "Threads")),
		Files:   len(files),
	}
}

// FileNames tells what the open files of the process are, for messages. Only on
// Linux.
func (p *Process) FileNames() []string {
	p.t.Helper()
	dir := fmt.Sprintf("/proc/%d/fd", p.PID())
	files, err := os.ReadDir(dir)
	if err != nil {
		p.t.Fatal(err)
	}
	var names []string
	for _, f := range files {
		name, err := os.Readlink(filepath.Join(dir, f.Name()))
		if err != nil {
			name = err.Error() // closed meanwhile
		}
		names = append(names, f.Name()+" "+name)
	}
	return names
}

// field returns the number behind a name in /proc/PID/status.
func field(t testing.TB, status, name string) int64 {
	t.Helper()
	for line := range strings.Lines(status) {
		key, value, ok := strings.Cut(line, ":")
		if words := strings.Fields(value); ok && key == name && len(words) > 0 {
			n, err := strconv.ParseInt(words[0], 10, 64)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			return n
		}
	}
	t.Fatalf("no %s in the status of the process", name)
	return 0
}
