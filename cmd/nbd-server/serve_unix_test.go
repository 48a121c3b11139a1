//go:build unix

package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"nbd.example/nbd/client"
	"nbd.example/nbd/proto"
	"nbd.example/nbd/test/harness"
)

// patience ends a test that is stuck. It is no measure of speed.
const patience = time.Minute

// instance is a server in the foreground.
type instance struct {
	t     *testing.T
	cmd   *exec.Cmd
	lines chan string
	done  chan error

	mu  sync.Mutex
	all bytes.Buffer
}

// launch starts the program in dir. What it logs comes line by line.
func launch(t *testing.T, dir string, prepare func(*exec.Cmd), args ...string) *instance {
	t.Helper()
	cmd := exec.Command(harness.Binary(t), args...)
	cmd.Dir = dir
	if prepare != nil {
		prepare(cmd)
	}
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	p := &instance{t: t, cmd: cmd, lines: make(chan string, 1000), done: make(chan error, 1)}
	go func() {
		in := bufio.NewScanner(stderr)
		for in.Scan() {
			p.mu.Lock()
			fmt.Fprintln(&p.all, in.Text())
			p.mu.Unlock()
			p.lines <- in.Text()
		}
		close(p.lines)
		p.done <- cmd.Wait()
	}()
	t.Cleanup(func() {
		cmd.Process.Kill()
		if t.Failed() {
			p.mu.Lock()
			defer p.mu.Unlock()
			t.Logf("%q said:\n%s", args, p.all.String())
		}
	})
	return p
}

// await returns the next line of the log that contains text.
func (p *instance) await(text string) string {
	p.t.Helper()
	for timeout := time.After(patience); ; {
		select {
		case line, ok := <-p.lines:
			if !ok {
				p.t.Fatalf("the server has ended, and never said %q", text)
			}
			if strings.Contains(line, text) {
				return line
			}
		case <-timeout:
			p.t.Fatalf("the server does not say %q", text)
		}
	}
}

// port waits until the server serves, and returns its TCP port.
func (p *instance) port() string {
	p.t.Helper()
	line := p.await("serving exports=")
	_, rest, _ := strings.Cut(line, "listening=")
	addr, _, _ := strings.Cut(strings.Trim(rest, `"`), " ")
	_, port, err := net.SplitHostPort(strings.Trim(addr, `"`))
	if err != nil {
		p.t.Fatalf("%s: %v", line, err)
	}
	return port
}

func (p *instance) signal(s os.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil {
		p.t.Fatal(err)
	}
}

// ends waits for the end, and returns the status.
func (p *instance) ends() int {
	p.t.Helper()
	timeout := time.After(patience)
	for {
		select {
		case <-p.lines:
		case err := <-p.done:
			var exit *exec.ExitError
			if errors.As(err, &exit) {
				return exit.ExitCode()
			}
			if err != nil {
				p.t.Fatal(err)
			}
			return 0
		case <-timeout:
			p.t.Fatal("the server does not end")
		}
	}
}

// stop ends the server as a service manager does, and wants a clean end.
func (p *instance) stop() {
	p.t.Helper()
	p.signal(syscall.SIGTERM)
	if status := p.ends(); status != 0 {
		p.t.Errorf("status %d after SIGTERM, want 0", status)
	}
}

// connect opens an export.
func connect(t *testing.T, uri string) (*client.Conn, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	return client.Dial(ctx, uri, nil)
}

func mustConnect(t *testing.T, uri string) *client.Conn {
	t.Helper()
	c, err := connect(t, uri)
	if err != nil {
		t.Fatalf("connect to %s: %v", uri, err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// bytesOf reads n bytes from the start of an export.
func bytesOf(t *testing.T, c *client.Conn, n int) []byte {
	t.Helper()
	p := make([]byte, n)
	if err := c.ReadAt(t.Context(), p, 0); err != nil {
		t.Fatal(err)
	}
	return p
}

func TestForeground(t *testing.T) {
	dir := harness.Dir(t)
	write(t, dir, "disk", "hello")
	write(t, dir, "c.conf", "[generic]\nport = 0\nlistenaddr = 127.0.0.1\n[e]\nexportname = "+dir+"/disk\n")
	p := launch(t, dir, nil, "-n", "-C", "c.conf", "-p", "pid")
	port := p.port()
	c := mustConnect(t, "nbd://127.0.0.1:"+port+"/e")
	if got := bytesOf(t, c, 5); string(got) != "hello" {
		t.Errorf("read %q", got)
	}
	if got := read(t, filepath.Join(dir, "pid")); got != fmt.Sprintln(p.cmd.Process.Pid) {
		t.Errorf("the pid file holds %q, want %d", got, p.cmd.Process.Pid)
	}
	p.signal(syscall.SIGUSR1) // ignored
	p.stop()
	if _, err := os.Stat(filepath.Join(dir, "pid")); err == nil {
		t.Error("the pid file is still there")
	}
}

// TestQuick is the first command of the README: a chain on the command line.
func TestQuick(t *testing.T) {
	port := strconv.Itoa(harness.FreePort(t))
	p := launch(t, harness.Dir(t), nil, "-n", "-C", "/nonexistent", "127.0.0.1@"+port, "memory:1M")
	p.await("serving exports=1")
	if c := mustConnect(t, "nbd://127.0.0.1:"+port); c.Size() != 1<<20 {
		t.Errorf("size %d", c.Size())
	}
	p.stop()
}

func TestStartErrors(t *testing.T) {
	dir := harness.Dir(t)
	busy, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer busy.Close()
	_, port, _ := net.SplitHostPort(busy.Addr().String())
	write(t, dir, "disk", "x")
	for _, c := range []struct{ name, conf, want string }{
		{"syntax", "[generic]\nrubbish\n[e]\nexportname = " + dir + "/disk\n", "nbd-server: " + dir + "/c.conf:2: \"rubbish\" is neither"},
		{"no file", "[generic]\nunixsock = " + dir + "/s\n[e]\nexportname = /nonexistent\n", "no such file or directory"},
		{"no file below a diff", "[generic]\nunixsock = " + dir + "/s\n[e]\nexportname = /nonexistent\ncopyonwrite = true\n", "no such file or directory"},
		{"no folder", "[generic]\nunixsock = " + dir + "/s\n[e]\nexportname = /nonexistent/disk\ntemporary = true\nfilesize = 4096\n", "no such file or directory"},
		{"no folder of the diff", "[generic]\nunixsock = " + dir + "/s\n[e]\nexportname = " + dir + "/disk\ncopyonwrite = true\ncowdir = /nonexistent\n", "no such file or directory"},
		{"port in use", "[generic]\nport = " + port + "\nlistenaddr = 127.0.0.1\n[e]\nexportname = " + dir + "/disk\n", "address already in use"},
		{"too small", "[generic]\nunixsock = " + dir + "/s\n[e]\nexportname = " + dir + "/disk\nfilesize = 4096\n", "has 1 bytes, fewer than the filesize of 4096"},
		{"log", "[generic]\nunixsock = " + dir + "/s\n[e]\nexportname = " + dir + "/disk\ntransactionlog = /nonexistent/log\n", "c.conf:5: transaction log: open /nonexistent/log: "},
		{"pid file", "[generic]\nunixsock = " + dir + "/s\n[e]\nexportname = " + dir + "/disk\n", "write the pid file"},
		{"user", "[generic]\nunixsock = " + dir + "/s\nuser = no-such-user\n[e]\nexportname = " + dir + "/disk\n", ""},
	} {
		for _, mode := range [][]string{{"-n"}, {}} {
			t.Run(fmt.Sprint(c.name, mode), func(t *testing.T) {
				want, pid := c.want, filepath.Join(dir, "pid")
				if c.name == "pid file" {
					pid = filepath.Join(dir, "disk", "pid")
				}
				if c.name == "user" {
					if os.Geteuid() != 0 {
						t.Skip("only root changes its user")
					}
					want = "c.conf:3: find user \"no-such-user\""
				}
				write(t, dir, "c.conf", c.conf)
				p := launch(t, dir, nil, append(mode, "-C", "c.conf", "-p", pid)...)
				if status := p.ends(); status != exitError {
					t.Errorf("status %d, want %d", status, exitError)
				}
				p.mu.Lock()
				defer p.mu.Unlock()
				if !strings.Contains(p.all.String(), want) {
					t.Errorf("it does not say %q", want)
				}
				for _, left := range []string{"pid", "s"} {
					if _, err := os.Lstat(filepath.Join(dir, left)); err == nil {
						t.Errorf("%s is left", left)
					}
				}
			})
		}
	}
}

// TestConfigBesideCommandLine: a complete command line needs no configuration, but one that
// is there must be right: what it restricts would be lost.
func TestConfigBesideCommandLine(t *testing.T) {
	dir := harness.Dir(t)
	write(t, dir, "empty", "")
	write(t, dir, "rubbish", "rubbish\n")
	write(t, dir, "incomplete", "[generic]\n[e]\nreadonly = true\n")
	for name, status := range map[string]int{"none": exitOK, "empty": exitOK, "rubbish": exitError, "incomplete": exitError} {
		p := launch(t, dir, nil, "-n", "-C", name, "unix:"+dir+"/"+name+".sock", "memory:1M")
		if status == exitOK {
			p.await("serving exports=1")
			mustConnect(t, harness.UnixURI(filepath.Join(dir, name+".sock"), "")).Close()
			p.signal(syscall.SIGTERM)
		}
		if got := p.ends(); got != status {
			t.Errorf("%s: status %d, want %d", name, got, status)
		}
	}
}

// TestUnixOnly: with unixsock alone there is no TCP listener, and a socket that
// a dead server left is replaced.
func TestUnixOnly(t *testing.T) {
	dir := harness.Dir(t)
	sock := filepath.Join(dir, "s")
	old, err := net.ListenUnix("unix", &net.UnixAddr{Name: sock, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	old.SetUnlinkOnClose(false)
	old.Close()
	write(t, dir, "c.conf", "[generic]\nunixsock = s\n[e]\nexportname = memory:1M\n")
	p := launch(t, dir, nil, "-n", "-C", "c.conf")
	if line := p.await("serving exports="); !strings.Contains(line, "listening="+sock+" ") {
		t.Errorf("%s; want it to listen on %s only", line, sock)
	}
	mustConnect(t, harness.UnixURI(sock, "e"))
	again := launch(t, dir, nil, "-n", "-C", "c.conf")
	again.await("another server listens on it")
	if status := again.ends(); status != exitError {
		t.Errorf("a second server: status %d", status)
	}
	p.stop()
	if _, err := os.Lstat(sock); err == nil {
		t.Error("the socket is still there")
	}
}

func TestDualListen(t *testing.T) {
	dir := harness.Dir(t)
	write(t, dir, "c.conf", "[generic]\nunixsock = s\nduallisten = true\nport = 0\nlistenaddr = 127.0.0.1\n[e]\nexportname = memory:1M\n")
	p := launch(t, dir, nil, "-n", "-C", "c.conf")
	line := p.await("serving exports=")
	_, rest, _ := strings.Cut(line, "127.0.0.1:")
	port, _, _ := strings.Cut(rest, `"`)
	mustConnect(t, harness.UnixURI(filepath.Join(dir, "s"), "e"))
	mustConnect(t, "nbd://127.0.0.1:"+strings.Fields(port)[0]+"/e")
	p.stop()
}

// TestInetd serves one client on standard input.
func TestInetd(t *testing.T) {
	for _, args := range [][]string{{"0", "memory:1M", "-C", "/nonexistent"}, {"-C", "c.conf", "0"}, {"-C", "zero.conf"}} {
		t.Run(fmt.Sprint(args), func(t *testing.T) {
			dir := harness.Dir(t)
			write(t, dir, "c.conf", "[generic]\nport = 1\ncontrol = ctl\n[e]\nexportname = memory:1M\n")
			write(t, dir, "zero.conf", "[generic]\nport = 0\ncontrol = ctl\n[e]\nexportname = memory:1M\n")
			fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
			if err != nil {
				t.Fatal(err)
			}
			syscall.CloseOnExec(fds[0])
			syscall.CloseOnExec(fds[1])
			ours, theirs := os.NewFile(uintptr(fds[0]), "ours"), os.NewFile(uintptr(fds[1]), "theirs")
			defer ours.Close()
			p := launch(t, dir, func(cmd *exec.Cmd) { cmd.Stdin, cmd.Stdout = theirs, theirs }, args...)
			theirs.Close()
			conn, err := net.FileConn(ours)
			if err != nil {
				t.Fatal(err)
			}
			export := ""
			if args[0] == "-C" {
				export = "e"
				p.await("the control socket ctl is not made")
			}
			c, err := client.New(t.Context(), conn, &client.Config{Export: export})
			if err != nil {
				t.Fatal(err)
			}
			if err := c.WriteAt(t.Context(), []byte("hi"), 0, 0); err != nil {
				t.Error(err)
			}
			if got := bytesOf(t, c, 2); string(got) != "hi" {
				t.Errorf("read %q", got)
			}
			if err := c.Close(); err != nil {
				t.Error(err)
			}
			if status := p.ends(); status != 0 {
				t.Errorf("status %d, want 0", status)
			}
		})
	}
	p := launch(t, harness.Dir(t), nil, "0", "memory:1M")
	p.await("that is not a socket")
	if status := p.ends(); status != exitError {
		t.Errorf("without a socket: status %d", status)
	}
}

// TestActivation serves on sockets that a service manager passes.
func TestActivation(t *testing.T) {
	dir := harness.Dir(t)
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	f, err := l.(*net.UnixListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	write(t, dir, "c.conf", "[generic]\nport = 1\n[e]\nexportname = memory:1M\n")
	p := launch(t, dir, func(cmd *exec.Cmd) {
		// The variable names the process, which the shell becomes.
		cmd.Args = []string{"sh", "-c", `LISTEN_PID=$$ exec "$0" "$@"`, cmd.Path, "-C", "c.conf", "--oldstyle", "2", "memory:1M"}
		cmd.Path = "/bin/sh"
		cmd.Env = append(os.Environ(), "LISTEN_FDS=1", "LISTEN_FDNAMES=nbd-server.socket")
		cmd.ExtraFiles = []*os.File{f}
	})
	p.await("--oldstyle has no effect: the service manager has passed the sockets")
	p.await("port has no effect: the service manager has passed the sockets")
	p.await("serving exports=2 listening=" + filepath.Join(dir, "s"))
	mustConnect(t, harness.UnixURI(filepath.Join(dir, "s"), "e"))
	p.stop()
}

// TestActivationNames: what a socket is for is said by its name.
func TestActivationNames(t *testing.T) {
	dir := harness.Dir(t)
	write(t, dir, "c.conf", "[generic]\n[e]\nexportname = memory:8k\n[f]\nexportname = memory:16k\n")
	activate := func(names ...string) *instance {
		var files []*os.File
		for i := range names {
			path := filepath.Join(dir, fmt.Sprint("s", i))
			os.Remove(path)
			l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
			if err != nil {
				t.Fatal(err)
			}
			l.SetUnlinkOnClose(false)
			f, err := l.File()
			if err != nil {
				t.Fatal(err)
			}
			l.Close()
			defer f.Close()
			files = append(files, f)
		}
		return launch(t, dir, func(cmd *exec.Cmd) {
			// The variable names the process, which the shell becomes.
			cmd.Args = []string{"sh", "-c", `LISTEN_PID=$$ exec "$0" "$@"`, cmd.Path, "-C", "c.conf"}
			cmd.Path = "/bin/sh"
			cmd.Env = append(os.Environ(), fmt.Sprint("LISTEN_FDS=", len(names)), "LISTEN_FDNAMES="+strings.Join(names, ":"))
			cmd.ExtraFiles = files
		})
	}
	p := activate("nbd", "oldstyle@f", "whatever")
	p.await("serving exports=2")
	uri := func(i int, export string) string {
		return harness.UnixURI(filepath.Join(dir, fmt.Sprint("s", i)), export)
	}
	if c := mustConnect(t, uri(0, "e")); c.Size() != 8192 {
		t.Errorf("the first socket serves %d bytes", c.Size())
	}
	if c := mustConnect(t, uri(2, "f")); c.Size() != 16384 {
		t.Errorf("the third socket serves %d bytes", c.Size())
	}
	old, err := client.Dial(t.Context(), uri(1, ""), &client.Config{Oldstyle: true})
	if err != nil {
		t.Fatal(err)
	}
	if old.Size() != 16384 {
		t.Errorf("the antique socket serves %d bytes", old.Size())
	}
	old.Close()
	p.stop()
	for name, want := range map[string]string{
		"oldstyle":   "there are 2 exports; name the socket oldstyle@EXPORT",
		"oldstyle@g": `it is for an export \"g\", and there is none`,
	} {
		p := activate(name)
		line := p.await("of the service manager")
		if status := p.ends(); status != exitError || !strings.Contains(strings.ReplaceAll(line, `\"`, `"`), strings.ReplaceAll(want, `\"`, `"`)) {
			t.Errorf("%s: status %d, %s", name, status, line)
		}
	}
}

// TestNotify tells a service manager about the server's states.
func TestNotify(t *testing.T) {
	dir := harness.Dir(t)
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer manager.Close()
	if err := manager.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	hear := func(want string) {
		t.Helper()
		b := make([]byte, 4096)
		n, err := manager.Read(b)
		if err != nil || !strings.HasPrefix(string(b[:n]), want) {
			t.Errorf("the manager heard %q, %v; want %q", b[:n], err, want)
		}
	}
	write(t, dir, "c.conf", "[generic]\nunixsock = s\n[e]\nexportname = memory:1M\n")
	// No -n: it must stay in the foreground by itself.
	p := launch(t, dir, func(cmd *exec.Cmd) {
		cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+filepath.Join(dir, "notify"))
	}, "-C", "c.conf")
	hear("READY=1\nSTATUS=serving 1 exports")
	p.signal(syscall.SIGHUP)
	hear("RELOADING=1\nMONOTONIC_USEC=")
	hear("READY=1")
	p.signal(syscall.SIGTERM)
	hear("STOPPING=1")
	if status := p.ends(); status != 0 {
		t.Errorf("status %d", status)
	}
}

// TestReload changes the configuration of a running server.
func TestReload(t *testing.T) {
	dir := harness.Dir(t)
	sock := filepath.Join(dir, "s")
	head := "[generic]\nunixsock = s\nallowlist = true\n[a]\nexportname = memory:1M\n"
	write(t, dir, "c.conf", head)
	p := launch(t, dir, nil, "-n", "-C", "c.conf")
	p.await("serving exports=1")
	a := mustConnect(t, harness.UnixURI(sock, "a"))
	if err := a.WriteAt(t.Context(), []byte("kept"), 0, 0); err != nil {
		t.Fatal(err)
	}

	write(t, dir, "c.conf", head+"[b]\nexportname = memory:2M\ntrim = flase\n")
	p.signal(syscall.SIGHUP)
	p.await(`c.conf:8: trim in [b]: "flase" is not a boolean`)
	p.await("the earlier one stays in force")
	if _, err := connect(t, harness.UnixURI(sock, "b")); err == nil {
		t.Error("an export of a faulty configuration is served")
	}

	write(t, dir, "c.conf", "[generic]\nunixsock = t\n[a]\nexportname = memory:1M\n[b]\nexportname = memory:2M\ntrim = false\n")
	p.signal(syscall.SIGHUP)
	line := p.await("configuration taken over")
	if !strings.Contains(line, `added="\"b\"" kept=1`) {
		t.Errorf("%s: want b added, and 1 kept", line)
	}
	p.await("listening no longer address=" + sock)
	sock = filepath.Join(dir, "t")
	if b := mustConnect(t, harness.UnixURI(sock, "b")); b.Size() != 2<<20 || b.Caps().Trim != 1 {
		t.Errorf("b has %d bytes, trim level %d", b.Size(), b.Caps().Trim)
	}
	if got := bytesOf(t, mustConnect(t, harness.UnixURI(sock, "a")), 4); string(got) != "kept" {
		t.Errorf("a holds %q, its device was not kept", got)
	}
	if got := bytesOf(t, a, 4); string(got) != "kept" {
		t.Errorf("the old connection reads %q", got)
	}
	p.stop()
}

// TestSecondSignal: a client that does not go does not keep the server.
func TestSecondSignal(t *testing.T) {
	dir := harness.Dir(t)
	write(t, dir, "c.conf", "[generic]\nunixsock = s\n[a]\nexportname = memory:1M | delay:read=1h\n")
	p := launch(t, dir, nil, "-d", "-C", "c.conf")
	p.await("serving exports=1")
	c, err := client.DialRaw(t.Context(), harness.UnixURI(filepath.Join(dir, "s"), "a"), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	// The read is never answered, the flush behind it is: then the read has arrived.
	if err := c.Send(
		&client.RawRequest{Request: proto.Request{Command: proto.CmdRead, Cookie: 1, Length: 1}},
		&client.RawRequest{Request: proto.Request{Command: proto.CmdFlush, Cookie: 2}},
	); err != nil {
		t.Fatal(err)
	}
	if r, err := c.Receive(); err != nil || r.Cookie != 2 {
		t.Fatalf("the flush is answered by %+v, %v", r, err)
	}
	p.signal(syscall.SIGTERM)
	p.await("shutting down")
	p.signal(syscall.SIGTERM)
	p.await("connections cut")
	if status := p.ends(); status != exitError {
		t.Errorf("status %d, want %d: connections were cut", status, exitError)
	}
	if r, err := c.Receive(); err == nil {
		t.Errorf("the read is answered by %+v", r)
	}
}

// TestExportKinds: what the keys of an export do to its file.
func TestExportKinds(t *testing.T) {
	dir := harness.Dir(t)
	sock := filepath.Join(dir, "s")
	disk := write(t, dir, "disk", strings.Repeat("d", 8192))
	write(t, dir, "nobody", "")
	write(t, dir, "c.conf", strings.ReplaceAll(`[generic]
unixsock = DIR/s
[plain]
exportname = DIR/disk
filesize = 4096
[ro]
exportname = DIR/disk
readonly = true
[cow]
exportname = DIR/disk
copyonwrite = true
[sparse]
exportname = DIR/disk
copyonwrite = true
sparse_cow = true
cowdir = DIR
[new]
exportname = DIR/new
filesize = 12345
[tmp]
exportname = DIR/tmp.XXXXXX
filesize = 4096
temporary = true
[nobody]
exportname = DIR/disk
authfile = DIR/nobody
readonly = true
[everybody]
exportname = DIR/disk
authfile = DIR/nonexistent
readonly = true
[hide]
exportname = DIR/hide
filesize = 4096
flush = false
fua = false
trim = false
`, "DIR", dir))
	p := launch(t, dir, nil, "-n", "-C", "c.conf")
	p.await("serving exports=9")
	open := func(name string) *client.Conn { return mustConnect(t, harness.UnixURI(sock, name)) }
	for name, size := range map[string]int64{"plain": 4096, "ro": 8192, "cow": 8192, "new": 12345, "tmp": 4096, "nobody": 8192, "everybody": 8192} {
		if got := open(name).Size(); got != size {
			t.Errorf("%s has %d bytes, want %d", name, got, size)
		}
	}
	if !open("ro").Caps().ReadOnly {
		t.Error("ro can be written")
	}
	for _, name := range []string{"cow", "sparse", "tmp"} {
		first, second := open(name), open(name)
		before := bytesOf(t, second, 4)
		if err := first.WriteAt(t.Context(), []byte("diff"), 0, 0); err != nil {
			t.Fatal(err)
		}
		if got := bytesOf(t, first, 4); string(got) != "diff" {
			t.Errorf("%s: read %q after a write", name, got)
		}
		if got := bytesOf(t, second, 4); !bytes.Equal(got, before) {
			t.Errorf("%s: another connection sees %q", name, got)
		}
	}
	if got := read(t, disk); got != strings.Repeat("d", 8192) {
		t.Error("a diff reached the file")
	}
	if c := open("hide").Export().Flags.String(); strings.Contains(c, "FLUSH") || strings.Contains(c, "FUA") || strings.Contains(c, "TRIM") {
		t.Errorf("hide offers %s", c)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	if len(entries) != 6 {
		t.Errorf("files: %v, want c.conf disk hide new nobody s", entries)
	}
	p.stop()
}

// TestTCPRules: a list of clients holds on TCP.
func TestTCPRules(t *testing.T) {
	dir := harness.Dir(t)
	write(t, dir, "nobody", "# nobody\n")
	write(t, dir, "loopback", "10.0.0.0/8\n127.0.0.0/8\n")
	write(t, dir, "c.conf", strings.ReplaceAll("[generic]\nport = 0\nlistenaddr = 127.0.0.1\n[a]\nexportname = memory:1M\nauthfile = DIR/nobody\n[b]\nexportname = memory:1M\nauthfile = DIR/loopback\n", "DIR", dir))
	p := launch(t, dir, nil, "-n", "-C", "c.conf")
	port := p.port()
	if _, err := connect(t, "nbd://127.0.0.1:"+port+"/a"); err == nil {
		t.Error("an empty list let a client in")
	}
	mustConnect(t, "nbd://127.0.0.1:"+port+"/b")
	p.stop()
}

// TestLogFormats: the log as programs read it.
func TestLogFormats(t *testing.T) {
	for format, want := range map[string]string{"json": `"msg":"serving"`, "logfmt": `msg=serving exports=1`} {
		dir := harness.Dir(t)
		write(t, dir, "c.conf", "[generic]\nunixsock = s\n[a]\nexportname = memory:1M\n")
		p := launch(t, dir, nil, "-n", "-C", "c.conf", "--log-format", format)
		p.await(want)
		p.stop()
	}
}

// TestTLSReload: TLS is forced, clients need certificates, and SIGHUP brings a
// new certificate.
func TestTLSReload(t *testing.T) {
	dir := harness.Dir(t)
	old, fresh := harness.NewAuthority(t, dir, "old"), harness.NewAuthority(t, dir, "fresh")
	oldServer, freshServer := old.Issue(t, "server", "server", "127.0.0.1"), fresh.Issue(t, "server", "server", "127.0.0.1")
	oldClient, freshClient := old.Issue(t, "client", "client"), fresh.Issue(t, "client", "client")
	config := func(server, ca string) string {
		return "[generic]\nport = 0\nlistenaddr = 127.0.0.1\nforce_tls = true\n" + harness.ServerLines(server, ca) + "[e]\nexportname = memory:1M\n"
	}
	write(t, dir, "c.conf", config(oldServer, old.CA()))
	p := launch(t, dir, nil, "-n", "-C", "c.conf")
	port := p.port()
	uri := func(scheme, folder string) string {
		return scheme + "://127.0.0.1:" + port + "/e?tls-certificates=" + folder
	}
	try := func(uri string, want bool) {
		t.Helper()
		c, err := connect(t, uri)
		if (err == nil) != want {
			t.Errorf("%s: %v; want success: %v", uri, err, want)
		}
		if err == nil {
			c.Close()
		}
	}
	try("nbd://127.0.0.1:"+port+"/e", false)
	try(uri("nbds", oldClient), true)
	try(uri("nbds", freshClient), false)
	try(uri("nbds", old.Folder(t, "none")), false)

	write(t, dir, "c.conf", config(freshServer, filepath.Join(dir, "nonexistent")))
	p.signal(syscall.SIGHUP)
	p.await("cacertfile: open ")
	p.await("the earlier one stays in force")
	try(uri("nbds", oldClient), true)

	write(t, dir, "c.conf", config(freshServer, fresh.CA()))
	p.signal(syscall.SIGHUP)
	p.await("configuration taken over")
	try(uri("nbds", freshClient), true)
	try(uri("nbds", oldClient), false)
	p.stop()
}
