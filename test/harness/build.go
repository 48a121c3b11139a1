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

// programs is where the packages of the programs are.
const programs = "nbd.example/nbd/cmd/"

// kind tells builds apart.
type kind struct {
	name string // of the program
	race bool   // it has the race detector
}

// builds holds the programs of this test process.
var builds struct {
	sync.Mutex
	dir  string
	done map[kind]func() (string, error)
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
	return server(t, raceEnabled)
}

// PlainBinary is like Binary, but never has the race detector: for tests that
// measure memory, which it multiplies.
func PlainBinary(t testing.TB) string {
	t.Helper()
	return server(t, false)
}

func server(t testing.TB, race bool) string {
	t.Helper()
	if path := os.Getenv(ServerVariable); path != "" {
		return path
	}
	return built(t, kind{"nbd-server", race})
}

// Tool returns the path of another one of our programs, built once, and without the
// race detector, which makes the start of a program slow: it is for those that are
// started often, and do one thing.
func Tool(t testing.TB, name string) string {
	t.Helper()
	return built(t, kind{name, false})
}

// built returns the path of a program, which is built once.
func built(t testing.TB, k kind) string {
	t.Helper()
	builds.Lock()
	f := builds.done[k]
	if f == nil {
		f = sync.OnceValues(func() (string, error) { return build(k) })
		if builds.done == nil {
			builds.done = make(map[kind]func() (string, error))
		}
		builds.done[k] = f
	}
	builds.Unlock()
	path, err := f()
	if err != nil {
		t.Fatal(err)
	}
	return path
}

// build runs the go command.
func build(k kind) (string, error) {
	dir, err := buildDir()
	if err != nil {
		return "", err
	}
	name, program := k.name, programs+k.name
	args := []string{"build"}
	if k.race {
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
