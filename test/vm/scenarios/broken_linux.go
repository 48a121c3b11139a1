package scenarios

import (
	"os"
	"time"

	"nbd.example/nbd/test/harness"
	"nbd.example/nbd/test/vm/guest"
)

// Broken returns scenarios that must not pass, each for a reason of its own: by them the
// machinery is tested.
func Broken() []guest.Scenario {
	return []guest.Scenario{
		{Name: "broken-leftover", Run: leave},
		{Name: "broken-stuck", Run: func(*guest.T) { <-make(chan struct{}) }},
		{Name: "broken-crash", Run: crash},
	}
}

// leave leaves a process behind.
func leave(t *guest.T) {
	harness.Run(t, "busybox", "sh", "-c", "busybox sleep 1000 </dev/null >/dev/null 2>&1 &")
}

// crash makes the kernel panic, and comes not back.
func crash(t *guest.T) {
	t.Must(os.WriteFile("/proc/sysrq-trigger", []byte("c"), 0), "crash")
	time.Sleep(time.Hour)
}
