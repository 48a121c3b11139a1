// Package daemon is what a server needs of the system to run as a service: going
// to the background, a file with its process number, giving up privileges, and unix
// sockets whose leftovers are removed safely.
//
// # Going to the background
//
// A Go program cannot fork: it has threads before its first line runs. So the
// parent starts the program a second time, in a session of its own, and waits.
// The child shares the parent's standard error and says on it what goes wrong, as
// if it ran in the foreground. Once it serves, it calls [Child.Ready]; then it lets
// go of the terminal, and the parent ends with status 0. If the child ends instead,
// the parent ends with the child's status. So whoever started the program learns
// whether it serves.
package daemon

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
)

// variable tells the child that it is one, and at which descriptor the parent
// listens.
const variable = "NBD_BACKGROUND_FD"

// Child is a process that was started by [Start]. Nil stands for one that was
// not; its methods do nothing then.
type Child struct{ report *os.File }

// AsChild returns the Child that this process is, or nil. It is called once.
func AsChild() *Child {
	fd, err := strconv.Atoi(os.Getenv(variable))
	os.Unsetenv(variable)
	if err != nil || fd < 3 {
		return nil
	}
	closeOnExec(fd)
	return &Child{report: os.NewFile(uintptr(fd), "parent")}
}

// Ready tells the parent that this process serves, and lets go of the terminal:
// from then on the standard streams lead nowhere. An error says that the parent
// is gone, and that nobody has learned that this process serves.
func (c *Child) Ready() error {
	if c == nil {
		return nil
	}
	if err := dropStreams(); err != nil {
		return fmt.Errorf("let go of the terminal: %w", err)
	}
	_, err := io.WriteString(c.report, "ready\n")
	if err = errors.Join(err, c.report.Close()); err != nil {
		return fmt.Errorf("tell the process that started this one that it serves: %w", err)
	}
	return nil
}

// Start runs this program again, with args (without its name), in the background
// and waits until it serves or has ended. It returns the status to exit with. The
// child's errors go to stderr.
func Start(args []string, stderr *os.File) (int, error) {
	return StartAs(os.Args[0], args, nil, stderr)
}

// StartAs is Start under another name, which the child sees as os.Args[0] and others
// in the list of processes. What the child prints goes to stdout; nil discards it.
func StartAs(name string, args []string, stdout, stderr *os.File) (int, error) {
	if !Supported {
		return 0, fmt.Errorf("go to the background: %w", errors.ErrUnsupported)
	}
	self, err := os.Executable()
	if err != nil {
		return 0, fmt.Errorf("go to the background: find this program's file: %w", err)
	}
	in, out, err := os.Pipe()
	if err != nil {
		return 0, fmt.Errorf("go to the background: %w", err)
	}
	defer in.Close()
	cmd := exec.Command(self, args...)
	cmd.Args[0] = name
	cmd.Env = append(os.Environ(), variable+"=3")
	cmd.Stderr = stderr
	if stdout != nil {
		cmd.Stdout = stdout
	}
	cmd.ExtraFiles = []*os.File{out}
	cmd.SysProcAttr = newSession()
	err = cmd.Start()
	out.Close()
	if err != nil {
		return 0, fmt.Errorf("go to the background: start %s again: %w", self, err)
	}
	report, _ := io.ReadAll(io.LimitReader(in, 64))
	if strings.HasPrefix(string(report), "ready") {
		return 0, cmd.Process.Release()
	}
	err = cmd.Wait()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit) && exit.ExitCode() > 0:
		return exit.ExitCode(), nil // it has said why
	case err == nil:
		err = errors.New("it ended before it served")
	}
	return 0, fmt.Errorf("the process in the background: %w", err)
}

// WritePID writes the number of this process to a file, and returns a function
// that removes the file if it still holds that number.
func WritePID(name string) (remove func() error, err error) {
	text := strconv.Itoa(os.Getpid()) + "\n"
	// Not renamed into place: the folder need not be writable if the file is.
	if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
		return nil, fmt.Errorf("write the pid file: %w", err)
	}
	return func() error {
		got, err := os.ReadFile(name)
		if err != nil || string(got) != text {
			return nil // gone, or somebody else's by now
		}
		return os.Remove(name)
	}, nil
}
