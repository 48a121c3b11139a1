//go:build unix

package daemon

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestLockFolderHeld: whoever holds the lock on a folder for ever, which anybody can who may
// read it, keeps nobody from listening there.
func TestLockFolderHeld(t *testing.T) {
	path := sockPath(t)
	f, err := os.Open(filepath.Dir(path))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		t.Skip("no such locks here: ", err)
	}
	lockFolder(t.Context(), filepath.Dir(path), time.Millisecond)()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	lockFolder(ctx, filepath.Dir(path), time.Hour)()
	f.Close()
	unlock := lockFolder(t.Context(), filepath.Dir(path), time.Hour)
	again, err := os.Open(filepath.Dir(path))
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if err := unix.Flock(int(again.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != unix.EWOULDBLOCK {
		t.Errorf("the folder is not locked: %v", err)
	}
	unlock()
	if err := unix.Flock(int(again.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		t.Errorf("the folder is locked for good: %v", err)
	}
}
