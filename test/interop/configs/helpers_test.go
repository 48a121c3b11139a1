package configs

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

var mu sync.Mutex // guards what parallel tests count

func sizeText(n int64) string { return fmt.Sprintf("%d bytes", n) }

// awaitPID waits for a program in the background to write its number.
func awaitPID(t *testing.T, name string) int {
	t.Helper()
	for end := time.Now().Add(patience); ; {
		b, err := os.ReadFile(name)
		if pid, bad := strconv.Atoi(strings.TrimSpace(string(b))); err == nil && bad == nil {
			return pid
		}
		if time.Now().After(end) {
			t.Fatalf("no number in %s: %q, %v", name, b, err)
		}
		time.Sleep(10 * time.Millisecond) // there is nothing to wait for: it tells nobody
	}
}
