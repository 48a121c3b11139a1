//go:build unix

package secrets

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// TestStuck: a file that does not answer keeps neither the helper nor whoever waits.
func TestStuck(t *testing.T) {
	name := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(name, 0o600); err != nil {
		t.Fatal(err)
	}
	r := begin(t, name)
	done := make(chan error)
	go func() {
		_, err := r.Read(name)
		done <- err
	}()
	w, err := os.OpenFile(name, os.O_WRONLY, 0) // once the helper reads it
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; !errors.Is(err, ErrGone) {
		t.Errorf("read: %v", err)
	}
}
