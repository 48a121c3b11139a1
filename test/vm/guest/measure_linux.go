package guest

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"
)

// Measured stands before measurements in the log of a scenario: CI shows these lines.
const Measured = "MEASURED: "

// Durations are measurements of one thing.
type Durations []time.Duration

// Add adds one.
func (d *Durations) Add(x time.Duration) { *d = append(*d, x) }

// String returns the median and the worst.
func (d Durations) String() string {
	if len(d) == 0 {
		return "not measured"
	}
	sorted := slices.Sorted(slices.Values(d))
	return fmt.Sprintf("median %v, worst %v", sorted[len(sorted)/2].Round(time.Millisecond), sorted[len(sorted)-1].Round(time.Millisecond))
}

// StopProcess stops a process in its tracks, and returns when it stands.
func StopProcess(t *T, pid int) {
	t.Must(syscall.Kill(pid, syscall.SIGSTOP), "stop a process")
	t.Await("the process stands", func() bool {
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil {
			return false
		}
		_, rest, _ := strings.Cut(string(text), ") ")
		return strings.HasPrefix(rest, "T")
	})
}
