package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"nbd.example/nbd/internal/testgate"
	"nbd.example/nbd/test/harness"
)

// background starts the program as a terminal does, waits for the program to
// return, and returns the process that the pid file names.
func background(t *testing.T, dir string, args ...string) int {
	t.Helper()
	cmd := exec.Command(harness.Binary(t), args...)
	cmd.Dir = dir
	// A pipe, so that the wait below shows that the server has let go of it.
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v: %s", err, out.Bytes())
	}
	pid, err := strconv.Atoi(strings.TrimSpace(read(t, filepath.Join(dir, "pid"))))
	if err != nil {
		t.Fatal(err)
	}
	if pid == cmd.Process.Pid {
		t.Fatal("the pid file names the process that has ended")
	}
	t.Cleanup(func() { syscall.Kill(pid, syscall.SIGKILL) })
	return pid
}

// watch returns what waits for the end of a process that is not our child.
func watch(t *testing.T, pid int) (ends func()) {
	t.Helper()
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return func() {
		t.Helper()
		for {
			n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(patience.Milliseconds()))
			if errors.Is(err, unix.EINTR) {
				continue
			}
			if err != nil || n != 1 {
				t.Fatalf("process %d does not end: %v", pid, err)
			}
			return
		}
	}
}

// finish ends a process that is not our child, and waits for its end.
func finish(t *testing.T, pid int) {
	t.Helper()
	ends := watch(t, pid)
	if err := syscall.Kill(pid, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	ends()
}

func TestBackground(t *testing.T) {
	dir := harness.Dir(t)
	if err := os.Mkdir(filepath.Join(dir, "conf.d"), 0o700); err != nil {
		t.Fatal(err)
	}
	write(t, dir, "disk", "hello")
	write(t, filepath.Join(dir, "conf.d"), "a.conf", "[a]\nexportname = "+dir+"/disk\n")
	// Every path is relative to here, which is not where the server will live.
	write(t, dir, "c.conf", "[generic]\nunixsock = s\nincludedir = conf.d\n[e]\nexportname = memory:1M\n")
	pid := background(t, dir, "-C", "c.conf", "-p", "pid")

	// It serves at once, on its own.
	sock := filepath.Join(dir, "s")
	if got := bytesOf(t, mustConnect(t, harness.UnixURI(sock, "a")), 5); string(got) != "hello" {
		t.Errorf("read %q", got)
	}
	if sid, err := unix.Getsid(pid); err != nil || sid != pid {
		t.Errorf("session %d, %v; want one of its own, %d", sid, err, pid)
	}
	for name, want := range map[string]string{"cwd": "/", "fd/0": "/dev/null", "fd/1": "/dev/null", "fd/2": "/dev/null"} {
		if got, err := os.Readlink(fmt.Sprintf("/proc/%d/%s", pid, name)); err != nil || got != want {
			t.Errorf("%s is %q, %v; want %q", name, got, err, want)
		}
	}

	// A second one says on the terminal why it cannot, and changes nothing.
	cmd := exec.Command(harness.Binary(t), "-C", "c.conf", "-p", "pid2")
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != exitError || !strings.Contains(string(out), "another server listens on it") {
		t.Errorf("a second server: %v, %s", err, out)
	}

	// Its log is out of reach: the new export itself shows when it is there.
	write(t, filepath.Join(dir, "conf.d"), "b.conf", "[b]\nexportname = memory:2M\n")
	if err := syscall.Kill(pid, syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(patience); ; {
		b, err := connect(t, harness.UnixURI(sock, "b"))
		if err == nil {
			b.Close()
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the reload brings no new export: %v", err)
		}
	}
	c := mustConnect(t, harness.UnixURI(sock, "e"))
	finish(t, pid)
	if err := c.ReadAt(t.Context(), make([]byte, 1), 0); err == nil {
		t.Error("a server that has ended still answers")
	}
	for _, name := range []string{"pid", "s", "pid2"} {
		if _, err := os.Lstat(filepath.Join(dir, name)); err == nil {
			t.Errorf("%s is left", name)
		}
	}
}

// TestInitScript: what init scripts do with the reference, which writes a pid file in the
// background without being told to, they can do with ours. The folder of that file is one
// that nobody else sees, and what is started ends with the test.
func TestInitScript(t *testing.T) {
	testgate.Requires(t, testgate.Root(), testgate.Program("unshare", "start-stop-daemon"))
	dir := harness.Dir(t)
	write(t, dir, "c.conf", "[generic]\nunixsock = "+dir+"/s\n[e]\nexportname = memory:1M\n")
	script := write(t, dir, "init", `set -e
mount -t tmpfs tmpfs /run
control="start-stop-daemon --quiet --exec $1 --oknodo --pidfile /var/run/nbd-server.pid"
$control --start -- -C $2/c.conf
test /proc/$(cat /run/nbd-server.pid)/exe -ef $1
$control --status
$control --stop --retry 60
if $control --status || test -e /run/nbd-server.pid; then exit 9; fi
`)
	out, err := exec.Command("unshare", "-mpf", "--mount-proc", "sh", script, harness.Binary(t), dir).CombinedOutput()
	if err != nil {
		t.Errorf("%v: %s", err, out)
	}
	if _, err := os.Lstat(filepath.Join(dir, "s")); err == nil {
		t.Error("the server has not ended as it should")
	}
}

// TestUnits lets systemd read the units.
func TestUnits(t *testing.T) {
	testgate.Requires(t, testgate.Program("systemd-analyze"))
	dir := t.TempDir()
	var units []string
	for _, name := range []string{"nbd-server.service", "nbd-server.socket"} {
		text := strings.ReplaceAll(read(t, filepath.Join("..", "..", "systemd", name)), "/usr/bin/nbd-server", harness.Binary(t))
		units = append(units, write(t, dir, name, text))
	}
	out, err := exec.Command("systemd-analyze", append([]string{"verify", "--man=no"}, units...)...).CombinedOutput()
	if err != nil || len(out) > 0 {
		t.Errorf("%v: %s", err, out)
	}
}

// TestUser: the server is root to open sockets and keys, and somebody else for
// the rest.
func TestUser(t *testing.T) {
	testgate.Requires(t, testgate.Root())
	dir := harness.Dir(t)
	if err := os.Chmod(dir, 0o777); err != nil {
		t.Fatal(err)
	}
	write(t, dir, "c.conf", "[generic]\nunixsock = s\nuser = 12345\ngroup = 54321\n[new]\nexportname = "+dir+"/new\nfilesize = 4096\n")
	p := launch(t, dir, nil, "-n", "-C", "c.conf")
	p.await("serving exports=1")
	status := read(t, fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	for _, want := range []string{"Uid:\t12345\t12345\t12345\t12345\n", "Gid:\t54321\t54321\t54321\t54321\n", "Groups:\t54321 \n", "CapEff:\t0000000000000000\n"} {
		if !strings.Contains(status, want) {
			t.Errorf("its status lacks %q:\n%s", want, status)
		}
	}
	info, err := os.Stat(filepath.Join(dir, "new"))
	if err != nil {
		t.Fatal(err)
	}
	if s := info.Sys().(*syscall.Stat_t); s.Uid != 12345 || s.Gid != 54321 {
		t.Errorf("the file that it made belongs to %d:%d", s.Uid, s.Gid)
	}
	mustConnect(t, harness.UnixURI(filepath.Join(dir, "s"), "new"))
	p.stop()
}
