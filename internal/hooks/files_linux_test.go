package hooks

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestFilesKept: what the server's parent has left open does not get to commands,
// which may be somebody else's.
func TestFilesKept(t *testing.T) {
	f, err := os.Create(filepath.Join(t.TempDir(), "secret"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	fd, err := syscall.Dup(int(f.Fd())) // unlike f, children inherit it
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Close(fd)
	h := begin(t, Config{})
	out, err := h.Run(within(t), Command{Text: "ls -l /proc/self/fd"})
	if err != nil || !strings.Contains(out, "/dev/null") || strings.Contains(out, "secret") {
		t.Errorf("open in a command:\n%s\n%v", out, err)
	}
}
