package wine

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"

	"nbd.example/nbd/internal/testgate"
)

// systemFolder is where wine keeps what Windows keeps in system32.
const systemFolder = "drive_c/windows/system32"

// available needs wine, and to be asked for.
func available(t testing.TB) {
	t.Helper()
	testgate.Requires(t, testgate.AskedOrMust("wine"), testgate.Own("wine", func() string {
		if runtime.GOOS != "linux" || runtime.GOARCH != "amd64" {
			return "needs Linux on x86-64, to run programs for Windows on the same"
		}
		for _, name := range []string{"wine64", "wineserver"} {
			if find(name) == "" {
				return "needs the program " + name
			}
		}
		if testgate.Find("go") == "" {
			return "needs the go command"
		}
		return ""
	}))
}

// find returns the path of one of wine's programs, or "".
func find(name string) string {
	if p := testgate.Find(name); p != "" {
		return p
	}
	return testgate.Find("/usr/lib/wine/" + name) // where Debian has them
}

// system is a Windows of wine's: a prefix, in its words.
type system struct {
	dir          string // holds everything
	wine, server string
	user         *exec.Cmd      // somebody who is logged in, all the time
	input        io.WriteCloser // what he types
}

var shared struct {
	sync.Mutex
	made *system
	err  error
}

// windows returns the system that all tests of the process share, and makes it for
// the first.
func windows(t testing.TB) *system {
	t.Helper()
	available(t)
	shared.Lock()
	defer shared.Unlock()
	if shared.made == nil && shared.err == nil {
		shared.made, shared.err = newSystem()
	}
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	return shared.made
}

// runTests runs the tests and removes the system.
func runTests(m *testing.M) int {
	defer func() {
		shared.Lock()
		defer shared.Unlock()
		if shared.made != nil {
			shared.made.close()
		}
	}()
	return m.Run()
}

func newSystem() (*system, error) {
	dir, err := os.MkdirTemp("", "nbd-wine-")
	if err != nil {
		return nil, err
	}
	s := &system{dir: dir, wine: find("wine64"), server: find("wineserver")}
	// Without a terminal of its own the boot would wait for nobody.
	if out, err := s.command("wineboot", "--init").CombinedOutput(); err != nil {
		return nil, errors.Join(fmt.Errorf("wineboot: %w\n%s", err, out), s.close())
	}
	dll := forwardingDLL("bcryptprimitives.dll", "ProcessPrng", "advapi32.SystemFunction036")
	if err := os.WriteFile(filepath.Join(dir, "prefix", systemFolder, "bcryptprimitives.dll"), dll, 0o644); err != nil {
		return nil, errors.Join(err, s.close())
	}
	if err := s.login(); err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

// login starts a command prompt that nobody types into. Without a program besides
// services, wine would shut down, and services with it.
func (s *system) login() (err error) {
	c := s.command("cmd")
	if s.input, err = c.StdinPipe(); err != nil {
		return err
	}
	if err := c.Start(); err != nil {
		return err
	}
	s.user = c
	return nil
}

// close ends everything that runs in the system, and removes it.
func (s *system) close() error {
	stop := exec.Command(s.server, "--kill")
	stop.Env = s.env()
	err := stop.Run() // fails where nothing runs
	if s.user != nil {
		s.input.Close()
		s.user.Wait() // killed, or at the end of its input
	}
	wait := exec.Command(s.server, "--wait")
	wait.Env = s.env()
	wait.Run()
	if gone := os.RemoveAll(s.dir); gone != nil {
		return errors.Join(err, gone)
	}
	return nil
}

// env is the environment for wine: no windows, no messages about what it lacks, and
// none of the parts that it would want to fetch.
func (s *system) env() []string {
	return append(os.Environ(),
		"WINEPREFIX="+filepath.Join(s.dir, "prefix"), "WINEDEBUG=-all", "WINEDLLOVERRIDES=mscoree=d;mshtml=d", "DISPLAY=")
}

// command runs a program of Windows.
func (s *system) command(program string, args ...string) *exec.Cmd {
	c := exec.Command(s.wine, append([]string{program}, args...)...)
	c.Env = s.env()
	c.Dir = s.dir
	return c
}

// path returns what a file of Linux is called in there.
func path(name string) string { return "Z:" + strings.ReplaceAll(name, "/", `\`) }

// drive makes name, a file or a device, the disk with the letter.
func (s *system) drive(letter byte, name string) error {
	return os.Symlink(name, filepath.Join(s.dir, "prefix/dosdevices", string(letter)+"::"))
}

// build builds what goArgs say for Windows, and returns the file.
func (s *system) build(name string, goArgs ...string) (string, error) {
	file := filepath.Join(s.dir, name)
	c := exec.Command("go", append(goArgs[:1:1], append([]string{"-o", file}, goArgs[1:]...)...)...)
	c.Env = append(os.Environ(), "GOOS=windows", "GOARCH=amd64", "CGO_ENABLED=0", "GOFLAGS=")
	if out, err := c.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go %s: %w\n%s", strings.Join(goArgs, " "), err, out)
	}
	return file, nil
}
