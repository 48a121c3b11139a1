package wine

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// module is the path of the module that is tested.
const module = "nbd.example/nbd"

// fallback is added to each test binary. Where the removal of a file in a folder
// "with POSIX semantics" fails for lack of it, package os falls back on the older
// call, but not for the error that wine has. It has a switch for its own tests.
const fallback = `package %s

import _ "unsafe"

//go:linkname wineFallback internal/syscall/windows.TestDeleteatFallback
var wineFallback bool

func init() { wineFallback = true }
`

// buildTests builds the tests of a package of the module, and returns the file and
// the package's folder.
func (s *system) buildTests(pkg string) (file, dir string, err error) {
	out, err := exec.Command("go", "list", "-f", "{{.Dir}}\n{{.Name}}", module+"/"+pkg).Output()
	if err != nil {
		return "", "", fmt.Errorf("go list %s: %w", pkg, err)
	}
	dir, name, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
	base := strings.ReplaceAll(pkg, "/", "_")
	extra := filepath.Join(s.dir, base+".go")
	if err := os.WriteFile(extra, fmt.Appendf(nil, fallback, name), 0o644); err != nil {
		return "", "", err
	}
	// The go command takes the file for one of the package's.
	overlay, err := json.Marshal(map[string]any{"Replace": map[string]string{filepath.Join(dir, "wine_fallback_test.go"): extra}})
	if err != nil {
		return "", "", err
	}
	list := filepath.Join(s.dir, base+".json")
	if err := os.WriteFile(list, overlay, 0o644); err != nil {
		return "", "", err
	}
	file, err = s.build(base+".test.exe", "test", "-c", "-overlay", list, "-ldflags=-checklinkname=0", module+"/"+pkg)
	return file, dir, err
}
