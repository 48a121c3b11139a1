package fileid_test

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"nbd.example/nbd/internal/fileid"
)

// TestName wants the name of a file and of a folder to outlive a new path, and what takes their
// places to have another one.
func TestName(t *testing.T) {
	if runtime.GOOS == "dragonfly" {
		t.Skip("the system does not tell when a file was made")
	}
	for kind, create := range map[string]func(string) error{
		"file":   func(name string) error { return os.WriteFile(name, nil, 0o600) },
		"folder": func(name string) error { return os.Mkdir(name, 0o700) },
	} {
		t.Run(kind, func(t *testing.T) {
			dir := t.TempDir()
			here, moved := filepath.Join(dir, "here"), filepath.Join(dir, "moved")
			name := func(path string) string {
				f, err := os.Open(path)
				if err != nil {
					t.Fatal(err)
				}
				defer f.Close()
				return fileid.Name(f)
			}
			if err := create(here); err != nil {
				t.Fatal(err)
			}
			first := name(here)
			if err := errors.Join(os.Rename(here, moved), create(here)); err != nil {
				t.Fatal(err)
			}
			if first == "" || name(moved) != first {
				t.Errorf("the name is %q, and under another path %q", first, name(moved))
			}
			if name(here) == first {
				t.Errorf("two have the name %q", first)
			}
		})
	}
}
