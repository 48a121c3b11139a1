package process

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
)

// startOf returns when a process began, or 0 if there is no such process, or only its
// remains. After an error nobody knows.
func startOf(pid int) (uint64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	switch {
	case err == nil:
		return parseStat(b), nil
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ESRCH):
		return 0, nil
	}
	return 0, err
}
