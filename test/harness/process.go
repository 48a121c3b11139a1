package harness

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"nbd.example/nbd/internal/testgate"
)

// Limits on waiting. They end a test that is stuck, and are no measure of speed.
const (
	startLimit   = 30 * time.Second
	stopLimit    = 60 * time.Second
	commandLimit = 3 * time.Minute
)

// Process is a program that runs beside the test.
type Process struct {
	t      testing.TB
	name   string
	cmd    *exec.Cmd
	log    logBuffer
	exited chan struct{} // closed when it has ended
	err    error         // how; read after exited
	once   sync.Once
}

// logBuffer keeps what a process says.
type logBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// Spawn starts a program, found as testgate.Find does or given as a path. It is
// killed with the test, if it has not ended by then.
func Spawn(t testing.TB, env []string, name string, args ...string) *Process {
	t.Helper()
	path := testgate.Find(name)
	if path == "" {
		t.Fatalf("no program %s", name)
	}
	p := &Process{t: t, name: filepath.Base(name), exited: make(chan struct{})}
	p.cmd = exec.Command(path, args...)
	p.cmd.Env = append(environ(), env...)
	p.cmd.Stdout, p.cmd.Stderr = &p.log, &p.log
	if err := p.cmd.Start(); err != nil {
		t.Fatalf("start %s: %v", name, err)
	}
	go func() {
		p.err = p.cmd.Wait()
		close(p.exited)
	}()
	t.Cleanup(func() {
		p.cmd.Process.Kill()
		<-p.exited
		if t.Failed() {
			t.Logf("%s %q said:\n%s", p.name, args, tail(p.log.String()))
		}
	})
	return p
}

// PID returns the number of the process.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Log returns what it has said so far.
func (p *Process) Log() string { return p.log.String() }

// Exited is closed when the process has ended.
func (p *Process) Exited() <-chan struct{} { return p.exited }

// Signal sends a signal.
func (p *Process) Signal(s os.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		p.t.Errorf("signal %s: %v", p.name, err)
	}
}

// Stop ends the process by SIGTERM, unless it has ended by itself, and fails the
// test if it does not end, or not with success. Only the first call does something.
func (p *Process) Stop() {
	p.t.Helper()
	p.once.Do(func() {
		p.t.Helper()
		select {
		case <-p.exited:
		default:
			p.Signal(syscall.SIGTERM)
		}
		if err := p.Wait(); err != nil {
			p.t.Errorf("%s ended by: %v", p.name, err)
		}
	})
}

// Kill ends the process as a crash does: without a word, and without its own doing. It
// returns when it is gone. That is no failure, and there is nothing left to Stop.
func (p *Process) Kill() {
	p.once.Do(func() {})
	p.Signal(os.Kill)
	<-p.exited
}

// Wait waits for the end of the process and returns how it ended, as
// [exec.Cmd.Wait] does.
func (p *Process) Wait() error {
	p.t.Helper()
	select {
	case <-p.exited:
		return p.err
	case <-time.After(stopLimit):
		p.cmd.Process.Signal(syscall.SIGQUIT) // a Go program shows its goroutines
		select {
		case <-p.exited:
		case <-time.After(5 * time.Second):
			p.cmd.Process.Kill()
		}
		p.t.Fatalf("%s has not ended in %v", p.name, stopLimit)
		return nil
	}
}

// AwaitListening waits until somebody answers at the address.
func (p *Process) AwaitListening(network, addr string) {
	p.t.Helper()
	limit := time.After(startLimit)
	again := time.NewTicker(5 * time.Millisecond)
	defer again.Stop()
	for {
		c, err := net.Dial(network, addr)
		if err == nil {
			c.Close()
			return
		}
		select {
		case <-p.exited:
			p.t.Fatalf("%s ended (%v) before it served:\n%s", p.name, p.err, tail(p.Log()))
		case <-limit:
			p.t.Fatalf("%s does not listen on %s: %v", p.name, addr, err)
		case <-again.C:
		}
	}
}

// AwaitText waits until the program has said a text.
func (p *Process) AwaitText(text string) {
	p.t.Helper()
	limit := time.After(startLimit)
	again := time.NewTicker(5 * time.Millisecond)
	defer again.Stop()
	for !strings.Contains(p.Log(), text) {
		select {
		case <-p.exited:
			p.t.Fatalf("%s ended (%v) before it said %q:\n%s", p.name, p.err, text, tail(p.Log()))
		case <-limit:
			p.t.Fatalf("%s does not say %q:\n%s", p.name, text, tail(p.Log()))
		case <-again.C:
		}
	}
}

// Command runs a program to its end and returns its standard output and standard
// error. A failure is returned, not judged.
func Command(t testing.TB, stdin, name string, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	path := testgate.Find(name)
	if path == "" {
		t.Fatalf("no program %s", name)
	}
	ctx, cancel := context.WithTimeout(context.Background(), commandLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Env = environ()
	cmd.Stdin = strings.NewReader(stdin)
	cmd.WaitDelay = 10 * time.Second
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err = cmd.Run()
	if ctx.Err() != nil {
		err = fmt.Errorf("not ended in %v: %w", commandLimit, err)
	}
	return out.String(), errs.String(), err
}

// Run is Command for a program that must succeed. It returns the standard output.
func Run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, errs, err := Command(t, "", name, args...)
	if err != nil {
		t.Fatalf("%s %q: %v\n%s%s", name, args, err, tail(out), tail(errs))
	}
	return out
}

// Refused is Command for a program that must fail. It returns all that it said.
func Refused(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, errs, err := Command(t, "", name, args...)
	if err == nil {
		t.Fatalf("%s %q succeeded, and should not:\n%s", name, args, tail(out))
	}
	return out + errs
}

// environ is the environment of every program here: the system's own python before
// others, for nbdsh, and plain messages.
func environ() []string {
	return append(os.Environ(), "PATH=/usr/bin:/bin:/usr/sbin:/sbin:"+os.Getenv("PATH"), "LC_ALL=C")
}

// tail bounds a text for a message.
func tail(s string) string {
	const most = 8000
	if len(s) > most {
		return "…" + s[len(s)-most:]
	}
	return s
}

// Dir makes a folder that is removed with the test. Its path is short enough for a
// socket, which that of t.TempDir need not be.
func Dir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "nbd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// FreePort returns a TCP port of the loopback address that nobody uses right now.
func FreePort(t testing.TB) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

// AwaitFile waits until a file is there, or the process that should make it ends.
func AwaitFile(t testing.TB, p *Process, path string) {
	t.Helper()
	again := time.NewTicker(5 * time.Millisecond)
	defer again.Stop()
	limit := time.After(startLimit)
	for {
		if _, err := os.Stat(path); err == nil {
			return
		}
		select {
		case <-p.Exited():
			t.Fatalf("the program ended before %s was there:\n%s", path, p.Log())
		case <-limit:
			t.Fatalf("no %s", path)
		case <-again.C:
		}
	}
}
