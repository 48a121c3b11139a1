package transmission

import (
	"fmt"
	"io/fs"
	"syscall"
	"testing"
)

func TestPublicHidesPaths(t *testing.T) {
	err := fmt.Errorf("not stable: %w", &fs.PathError{Op: "write", Path: "/srv/secret/disk.img", Err: syscall.EIO})
	if got, want := public(err), "not stable: write: input/output error"; got != want {
		t.Errorf("a client is told %q, not %q", got, want)
	}
}
