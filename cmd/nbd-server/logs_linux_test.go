package main

import (
	"context"
	"errors"
	"fmt"
	"log/syslog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"nbd.example/nbd/client"
	"nbd.example/nbd/internal/testgate"
	"nbd.example/nbd/test/harness"
)

// rest returns all lines of the log that have not been taken, once the server has ended.
func (p *instance) rest() (lines []string) {
	p.t.Helper()
	timeout := time.After(patience)
	for {
		select {
		case line, ok := <-p.lines:
			if !ok {
				return lines
			}
			lines = append(lines, line)
		case <-timeout:
			p.t.Fatal("the server does not end")
		}
	}
}

// lastOf returns the last line, "" if there is none.
func lastOf(lines []string) string {
	if len(lines) == 0 {
		return ""
	}
	return lines[len(lines)-1]
}

// again sends a signal until stop is called: one that comes while another one of its kind
// waits is lost.
func again(pid int, sig syscall.Signal) (stop func()) {
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			syscall.Kill(pid, sig)
			select {
			case <-done:
				return
			case <-time.After(20 * time.Millisecond):
			}
		}
	}()
	return func() { close(done); <-ended }
}

// stuckMerge is a configuration whose export e merges its changes, on SIGUSR1, into a disk
// that does not answer. The server cannot end in good order then.
const stuckMerge = "[generic]\nunixsock = s\n[e]\nexportname = memory:1M | delay:write=1h\nwaitfile = DIR/diff\n"

// stick has a server with stuckMerge merge.
func stick(t *testing.T, dir string, pid int, await func(text string) string) {
	t.Helper()
	c := mustConnect(t, harness.UnixURI(filepath.Join(dir, "s"), "e"))
	if err := c.WriteAt(t.Context(), []byte("change"), 0, 0); err != nil {
		t.Fatal(err)
	}
	c.Close()
	stop := again(pid, syscall.SIGUSR1)
	defer stop()
	await("state=merging")
}

// TestLastLines: what a server says last reaches standard error, however it ends.
func TestLastLines(t *testing.T) {
	t.Run("error", func(t *testing.T) {
		dir := harness.Dir(t)
		write(t, dir, "c.conf", "[generic]\nunixsock = s\n[e]\nexportname = "+dir+"/none\n")
		p := launch(t, dir, nil, "-n", "-C", "c.conf")
		if last := lastOf(p.rest()); !strings.HasPrefix(last, "nbd-server: ") || !strings.Contains(last, dir+"/none") {
			t.Errorf("the last line is %q", last)
		}
		if status := p.ends(); status != exitError {
			t.Errorf("status %d, want %d", status, exitError)
		}
	})
	t.Run("SIGTERM", func(t *testing.T) {
		dir := harness.Dir(t)
		write(t, dir, "c.conf", "[generic]\nunixsock = s\n[e]\nexportname = memory:1M\n")
		p := launch(t, dir, nil, "-n", "-C", "c.conf")
		p.await("serving exports=1")
		const clients = 50
		for range clients {
			mustConnect(t, harness.UnixURI(filepath.Join(dir, "s"), "e"))
		}
		p.signal(syscall.SIGTERM)
		p.await("shutting down")
		n := 0
		for _, line := range p.rest() {
			if strings.Contains(line, "client disconnected") {
				n++
			}
		}
		if n != clients {
			t.Errorf("the end of %d connections was logged, of %d", n, clients)
		}
		if status := p.ends(); status != exitOK {
			t.Errorf("status %d, want %d", status, exitOK)
		}
	})
	t.Run("third SIGTERM", func(t *testing.T) {
		dir := harness.Dir(t)
		write(t, dir, "c.conf", strings.ReplaceAll(stuckMerge, "DIR", dir))
		p := launch(t, dir, nil, "-n", "-C", "c.conf")
		p.await("serving exports=1")
		stick(t, dir, p.cmd.Process.Pid, p.await)
		stop := again(p.cmd.Process.Pid, syscall.SIGTERM)
		last := lastOf(p.rest())
		stop()
		if !strings.Contains(last, "ending at once") {
			t.Errorf("the last line is %q", last)
		}
		if status := p.ends(); status != exitError {
			t.Errorf("status %d, want %d", status, exitError)
		}
	})
}

// systemLog takes the place of syslog for programs that are run in a name space of their
// own, by prepare.
type systemLog struct {
	t    *testing.T
	dir  string // their /run
	conn *net.UnixConn
}

const ownLog = `mount --bind "$1" /run
if [ -S /dev/log ]; then mount --bind "$1/log" /dev/log; fi
shift
exec "$@"`

func newSystemLog(t *testing.T) *systemLog {
	t.Helper()
	testgate.Requires(t, testgate.Root(), testgate.Program("unshare", "mount"), testgate.Own("", func() string {
		if out, err := exec.Command("unshare", "--mount", "mount", "--bind", "/", "/mnt").CombinedOutput(); err != nil {
			return fmt.Sprintf("needs to mount in a name space of its own: %v: %s", err, out)
		}
		if target, err := filepath.EvalSymlinks("/var/run"); err != nil || target != "/run" {
			return "needs /var/run to lead to /run"
		}
		return ""
	}))
	s := &systemLog{t: t, dir: harness.Dir(t)}
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(s.dir, "log"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if err := os.Chmod(s.dir, 0o755); err != nil {
		t.Fatal(err)
	}
	s.conn = conn
	return s
}

// prepare runs a command where s is syslog.
func (s *systemLog) prepare(cmd *exec.Cmd) {
	cmd.Args = append([]string{"unshare", "--mount", "sh", "-e", "-c", ownLog, "sh", s.dir, cmd.Path}, cmd.Args[1:]...)
	cmd.Path = testgate.Find("unshare")
}

// next returns the next line, without what syslog puts in front of it.
func (s *systemLog) next() string {
	s.t.Helper()
	s.conn.SetReadDeadline(time.Now().Add(patience))
	b := make([]byte, 4096)
	n, err := s.conn.Read(b)
	if err != nil {
		s.t.Fatalf("syslog: %v", err)
	}
	_, text, _ := strings.Cut(string(b[:n]), "]: ")
	return strings.TrimSuffix(text, "\n")
}

func (s *systemLog) await(text string) string {
	s.t.Helper()
	for {
		if line := s.next(); strings.Contains(line, text) {
			return line
		}
	}
}

// rest returns all lines that are there and have not been taken.
func (s *systemLog) rest() (lines []string) {
	s.t.Helper()
	ours, err := net.Dial("unixgram", filepath.Join(s.dir, "log"))
	if err != nil {
		s.t.Fatal(err)
	}
	defer ours.Close()
	go ours.Write([]byte("[1]: the end")) // there may be no room for it yet
	for {
		line := s.next()
		if line == "the end" {
			return lines
		}
		lines = append(lines, line)
	}
}

// launchBehind is launch for a server in the background, whose log is s.
func (s *systemLog) launchBehind(dir string, args ...string) (pid int) {
	s.t.Helper()
	p := launch(s.t, dir, s.prepare, append(args, "-p", filepath.Join(dir, "pid"))...)
	if status := p.ends(); status != exitOK {
		s.t.Fatalf("status %d", status)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(read(s.t, filepath.Join(dir, "pid"))))
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { syscall.Kill(pid, syscall.SIGKILL) })
	return pid
}

// TestSyslogLastLines: what a server in the background says last reaches syslog, however
// it ends.
func TestSyslogLastLines(t *testing.T) {
	s := newSystemLog(t)
	t.Run("SIGTERM", func(t *testing.T) {
		dir := harness.Dir(t)
		write(t, dir, "c.conf", "[generic]\nunixsock = s\n[e]\nexportname = memory:1M\n")
		pid := s.launchBehind(dir, "-C", "c.conf")
		s.await("serving exports=1")
		finish(t, pid)
		if last := lastOf(s.rest()); last != "shutting down why=terminated" {
			t.Errorf("the last line is %q", last)
		}
	})
	t.Run("third SIGTERM", func(t *testing.T) {
		dir := harness.Dir(t)
		write(t, dir, "c.conf", strings.ReplaceAll(stuckMerge, "DIR", dir))
		pid := s.launchBehind(dir, "-C", "c.conf")
		s.await("serving exports=1")
		stick(t, dir, pid, s.await)
		ends := watch(t, pid)
		stop := again(pid, syscall.SIGTERM)
		s.await("ending at once")
		stop()
		ends()
		if more := s.rest(); len(more) > 0 {
			t.Errorf("behind the last line there are %q", more)
		}
	})
	t.Run("error", func(t *testing.T) {
		// The client's socket is standard error, too: an error has syslog only.
		dir := harness.Dir(t)
		fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		ours, theirs := os.NewFile(uintptr(fds[0]), "ours"), os.NewFile(uintptr(fds[1]), "theirs")
		defer ours.Close()
		cmd := exec.Command(harness.Binary(t), "0", dir+"/none", "-C", "/nonexistent")
		s.prepare(cmd)
		cmd.Stdin, cmd.Stdout, cmd.Stderr = theirs, theirs, theirs
		err = cmd.Run()
		theirs.Close()
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != exitError {
			t.Errorf("%v, want status %d", err, exitError)
		}
		if last := lastOf(s.rest()); !strings.Contains(last, dir+"/none") {
			t.Errorf("the last line is %q", last)
		}
	})
}

// TestServingIsSaid: where there is no syslog, a server that goes to the background says on
// standard error that it serves before it lets go of that.
func TestServingIsSaid(t *testing.T) {
	testgate.Requires(t, testgate.Own("", func() string {
		if w, err := syslog.New(syslog.LOG_DAEMON, "nbd-server"); err == nil {
			w.Close()
			return "needs a machine without syslog"
		}
		return ""
	}))
	dir := harness.Dir(t)
	write(t, dir, "c.conf", "[generic]\nunixsock = s\n[e]\nexportname = memory:1M\n")
	p := launch(t, dir, nil, "-C", "c.conf", "-p", "pid")
	lines := p.rest()
	if pid, err := strconv.Atoi(strings.TrimSpace(read(t, filepath.Join(dir, "pid")))); err != nil {
		t.Error(err)
	} else {
		finish(t, pid)
	}
	if last := lastOf(lines); !strings.Contains(last, "serving exports=1") {
		t.Errorf("it says %q", lines)
	}
}

// crowd lets clients come and go, each of which leaves lines in the log, and be answered.
func crowd(t *testing.T, sock string, clients int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 4*patience)
	defer cancel()
	for range clients {
		c, err := connect(t, harness.UnixURI(sock, "e"))
		if err != nil {
			t.Fatal(err)
		}
		if err := c.ReadAt(ctx, make([]byte, 512), 0); err != nil {
			t.Fatal(err)
		}
		c.Close()
	}
}

// TestLogHangs: requests are answered, and the server ends, though nobody takes its log.
func TestLogHangs(t *testing.T) {
	const clients = 500 // two lines each: more than a socket, or a short pipe, can hold
	const conf = "[generic]\nunixsock = s\n[e]\nexportname = memory:1M\n"
	t.Run("syslog", func(t *testing.T) {
		s, dir := newSystemLog(t), harness.Dir(t)
		write(t, dir, "c.conf", conf)
		pid := s.launchBehind(dir, "-C", "c.conf")
		crowd(t, filepath.Join(dir, "s"), clients)
		finish(t, pid)
		if n := len(s.rest()); n == 0 || n >= 2*clients {
			t.Errorf("syslog has %d lines: it did not hang", n)
		}
	})
	t.Run("stderr", func(t *testing.T) {
		dir := harness.Dir(t)
		write(t, dir, "c.conf", conf)
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		if _, err := unix.FcntlInt(r.Fd(), unix.F_SETPIPE_SZ, 4096); err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(harness.Binary(t), "-n", "-C", "c.conf")
		cmd.Dir, cmd.Stderr = dir, w
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		defer cmd.Process.Kill()
		w.Close()
		b := make([]byte, 4096)
		if n, err := r.Read(b); err != nil || !strings.Contains(string(b[:n]), "serving exports=1") {
			t.Fatalf("it says %q, %v", b[:n], err)
		}
		crowd(t, filepath.Join(dir, "s"), clients)
		if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err != nil {
			t.Errorf("the end: %v", err)
		}
	})
	t.Run("inetd", func(t *testing.T) {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		defer w.Close()
		for full := false; !full; {
			if err := w.SetWriteDeadline(time.Now().Add(time.Millisecond)); err != nil {
				t.Fatal(err)
			}
			_, err := w.Write(make([]byte, 4096))
			full = errors.Is(err, os.ErrDeadlineExceeded)
		}
		fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		ours, theirs := os.NewFile(uintptr(fds[0]), "ours"), os.NewFile(uintptr(fds[1]), "theirs")
		defer ours.Close()
		cmd := exec.Command(harness.Binary(t), "0", "memory:1M", "-C", "/nonexistent")
		cmd.Stdin, cmd.Stdout, cmd.Stderr = theirs, theirs, w
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		defer cmd.Process.Kill()
		theirs.Close()
		conn, err := net.FileConn(ours)
		if err != nil {
			t.Fatal(err)
		}
		conn.SetDeadline(time.Now().Add(patience))
		c, err := client.New(t.Context(), conn, &client.Config{})
		if err != nil {
			t.Fatal(err)
		}
		bytesOf(t, c, 2)
		c.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("the end: %v", err)
		}
	})
}
