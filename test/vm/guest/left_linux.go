package guest

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// leftovers fails a scenario that has not undone what it did: the next one would run
// in another machine than it believes.
func leftovers(t *T) {
	limit := time.Now().Add(10 * time.Second)
	for {
		left := append(append(attached(), mounts()...), processes()...)
		if len(left) == 0 {
			return
		}
		if time.Now().After(limit) {
			t.Errorf("left behind: %s", strings.Join(left, "; "))
			return
		}
		time.Sleep(10 * time.Millisecond) // some things take a moment to go away
	}
}

// attached lists block devices that are in use.
func attached() []string {
	var left []string
	for _, pattern := range []string{"nbd*/pid", "loop*/loop/backing_file", "dm-*/dm/name"} {
		found, err := filepath.Glob("/sys/block/" + pattern)
		if err != nil {
			found = []string{err.Error()}
		}
		left = append(left, found...)
	}
	return left
}

// mounts lists mounted block devices.
func mounts() []string {
	text, err := os.ReadFile("/proc/mounts")
	if err != nil {
		return []string{err.Error()}
	}
	var left []string
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "/dev/") {
			left = append(left, strings.TrimSpace(line))
		}
	}
	return left
}

// processes lists those that are neither the kernel's nor ours.
func processes() []string {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return []string{err.Error()}
	}
	var left []string
	for _, dir := range dirs {
		pid, err := strconv.Atoi(filepath.Base(dir))
		if err != nil || pid == 1 || pid == os.Getpid() {
			continue
		}
		// Threads of the kernel, and dead processes, have no command line.
		if line, err := os.ReadFile(dir + "/cmdline"); err == nil && len(line) > 0 {
			words := strings.ReplaceAll(string(line), "\x00", " ")
			if !strings.HasPrefix(words, "/sbin/modprobe ") {
				left = append(left, fmt.Sprintf("process %d %s", pid, words))
			}
		}
	}
	return left
}
