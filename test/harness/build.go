package harness

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
)

// ServerVariable names an nbd-server that is there already, in the environment. The tests then
// use that one, with whatever it can do, and build none.
const ServerVariable = "NBD_TEST_SERVER"

// program is the package that the tests are about.
const program = "nbd.example/nbd/cmd/nbd-server"

// builds holds the programs of this test process.
var builds struct {
	sync.Mutex
	dir  string
	done map[bool]func() (string, error) // by "with the race detector"
}

// Main runs a package's tests and removes what was built for them. Call it from
// TestMain: os.Exit(harness.Main(m)).
func Main(m *testing.M) int {
	defer func() {
		builds.Lock()
		defer builds.Unlock()
		if builds.dir != "" {
			os.RemoveAll(builds.dir)
		}
	}()
	return m.Run()
}

// Binary returns the path of nbd-server, built once. It has the race detector if
// the test has it.
func Binary(t testing.TB) string {
	t.Helper()
	return binary(t, raceEnabled)
}

// PlainBinary is like Binary, but never has the race detector: for tests that
// measure memory, which it multiplies.
func PlainBinary(t testing.TB) string {
	t.Helper()
	return binary(t, false)
}

func binary(t testing.TB, race bool) string {
	t.Helper()
	if path := os.Getenv(ServerVariable); path != "" {
		return path
	}
	builds.Lock()
	if builds.done == nil {
		builds.done = map[bool]func() (string, error){
			true:  sync.OnceValues(func() (string, error) { return build(true) }),
			false: sync.OnceValues(func() (string, error) { return build(false) }),
		}
	}
	f := builds.done[race]
	builds.Unlock()
	path, err := f()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// build runs the go command.
func build(race bool) (string, error) {
	dir, err := buildDir()
	if err != nil {
		return "", err
	}
	name := "nbd-server"
	args := []string{"build"}
	if race {
		name += "-race"
		args = append(args, "-race")
	}
	if runtime.GOOS == "windows" {
		name += ".exe"
	}
	path := filepath.Join(dir, name)
	cmd := exec.Command("go", append(args, "-o", path, program)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build %s: %w\n%s", program, err, out)
	}
	if _, err := os.Stat(path); err != nil {
		return "", errors.Join(errors.New("the go command built nothing"), err)
	}
	return path, nil
}

func buildDir() (string, error) {
	builds.Lock()
	defer builds.Unlock()
	if builds.dir == "" {
		dir, err := os.MkdirTemp("", "nbd-test-bin-")
		if err != nil {
			return "", err
		}
		builds.dir = dir
	}
	return builds.dir, nil
}
