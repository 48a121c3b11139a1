//go:build unix

package main

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"nbd.example/nbd/block"
	"nbd.example/nbd/internal/control"
	"nbd.example/nbd/internal/trlog"
	"nbd.example/nbd/test/harness"
)

// ask sends a request to a control socket, and wants an answer.
func ask(t *testing.T, socket string, r control.Request, result any) {
	t.Helper()
	c, err := control.Dial(t.Context(), socket)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.Do(t.Context(), r, result); err != nil {
		t.Errorf("%s: %v", r.Op, err)
	}
}

// TestControlSocket: where it is, who may use it, and when it goes.
func TestControlSocket(t *testing.T) {
	dir := harness.Dir(t)
	write(t, dir, "c.conf", "[generic]\nunixsock = s\ncontrol = other\n[e]\nexportname = memory:1M\n")
	socket := filepath.Join(dir, "ctl")
	l, err := net.Listen("unix", socket) // left by a dead server
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	p := launch(t, dir, nil, "-n", "-C", "c.conf", "--control=ctl")
	p.await("serving exports=1")
	if info, err := os.Stat(socket); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the socket: %v, %v", info, err)
	}
	if _, err := os.Lstat(filepath.Join(dir, "other")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket of the configuration is there, too: %v", err)
	}
	var s control.Status
	ask(t, socket, control.Request{Op: control.OpStatus}, &s)
	if s.PID != p.cmd.Process.Pid || !strings.HasPrefix(s.Program, "nbd-server ") || time.Since(s.Since) < 0 {
		t.Errorf("%+v", s)
	}
	p.stop()
	if _, err := os.Lstat(socket); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket is left: %v", err)
	}
}

// TestControlInUse: two servers do not share a socket.
func TestControlInUse(t *testing.T) {
	dir := harness.Dir(t)
	write(t, dir, "c.conf", "[generic]\ncontrol = ctl\nunixsock = s\n[e]\nexportname = memory:1M\n")
	write(t, dir, "d.conf", "[generic]\ncontrol = ctl\nunixsock = t\n[e]\nexportname = memory:1M\n")
	p := launch(t, dir, nil, "-n", "-C", "c.conf")
	p.await("serving exports=1")
	q := launch(t, dir, nil, "-n", "-C", "d.conf")
	q.await("control socket: listen on " + filepath.Join(dir, "ctl") + ": another server listens on it")
	if status := q.ends(); status != exitError {
		t.Errorf("status %d", status)
	}
	ask(t, filepath.Join(dir, "ctl"), control.Request{Op: control.OpStatus}, nil)
	p.stop()
}

// TestControlActivated: a service manager passes the control socket.
func TestControlActivated(t *testing.T) {
	dir := harness.Dir(t)
	socket := filepath.Join(dir, "ctl")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	f, err := l.(*net.UnixListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	write(t, dir, "c.conf", "[generic]\nunixsock = s\ncontrol = other\n[e]\nexportname = memory:1M\n")
	p := launch(t, dir, func(cmd *exec.Cmd) {
		cmd.Args = []string{"sh", "-c", `LISTEN_PID=$$ exec "$0" "$@"`, cmd.Path, "-C", "c.conf"}
		cmd.Path = "/bin/sh"
		cmd.Env = append(os.Environ(), "LISTEN_FDS=1", "LISTEN_FDNAMES=control")
		cmd.ExtraFiles = []*os.File{f}
	})
	p.await("is not made: the service manager has passed one")
	p.await("serving exports=1 listening=" + filepath.Join(dir, "s")) // its own, since none of those were passed
	ask(t, socket, control.Request{Op: control.OpStatus}, nil)
	p.stop()
	if _, err := os.Lstat(socket); err != nil {
		t.Errorf("the socket is not the server's to remove: %v", err)
	}
}

// TestTransactionLogKeys: what the keys do, and what is refused.
func TestTransactionLogKeys(t *testing.T) {
	dir := harness.Dir(t)
	conf := func(lines string) {
		write(t, dir, "c.conf", "[generic]\nunixsock = s\n[e]\nexportname = memory:1M\n"+lines)
	}
	conf("transactionlog = log\n")
	p := launch(t, dir, nil, "-C", "c.conf", "--check-config")
	if status := p.ends(); status != exitOK {
		t.Errorf("--check-config: status %d", status)
	}
	log := filepath.Join(dir, "log")
	if _, err := os.Lstat(log); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("--check-config has opened the log: %v", err)
	}
	for lines, want := range map[string]string{
		"transactionlog = no/folder/log\n": "c.conf:5: transaction log: open",
		"transactionlog = c.conf\n":        "the file is no transaction log",
	} {
		conf(lines)
		p := launch(t, dir, nil, "-n", "-C", "c.conf")
		p.await(want)
		if status := p.ends(); status != exitError {
			t.Errorf("%q: status %d", lines, status)
		}
	}
	conf("transactionlog = log\n[f]\nexportname = memory:1M\ntransactionlog = log\ndatalog = true\n")
	p = launch(t, dir, nil, "-n", "-C", "c.conf")
	p.await("serving exports=2")
	for _, export := range []string{"e", "f", "e"} {
		c := mustConnect(t, harness.UnixURI(filepath.Join(dir, "s"), export))
		if err := c.WriteAt(t.Context(), []byte("written to "+export), 512, block.FUA); err != nil {
			t.Fatal(err)
		}
		c.Close()
	}
	p.stop()
	if got := printed(t, log); strings.Count(got, "NBD_CMD_WRITE") != 3 || strings.Count(got, "< H=") != 3 || strings.Count(got, "DATALOG set to 1") != 1 {
		t.Errorf("the log holds\n%s", got)
	}
	text, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(text, []byte("written to e")) || !bytes.Contains(text, []byte("written to f")) {
		t.Error("data is logged, or not, against datalog")
	}
}

// printed returns what a log holds as text.
func printed(t *testing.T, log string) string {
	t.Helper()
	f, err := os.Open(log)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var b strings.Builder
	if err := trlog.Dump(&b, f); err != nil {
		t.Error(err)
	}
	return b.String()
}

// TestTransactionLogReload rotates a log by SIGHUP, also while the configuration is
// wrong, and moves it elsewhere by the configuration.
func TestTransactionLogReload(t *testing.T) {
	dir := harness.Dir(t)
	conf := func(lines string) {
		write(t, dir, "c.conf", "[generic]\nunixsock = s\n[e]\nexportname = memory:1M\n"+lines)
	}
	conf("transactionlog = log\n")
	p := launch(t, dir, nil, "-n", "-C", "c.conf")
	p.await("serving exports=1")
	uri := harness.UnixURI(filepath.Join(dir, "s"), "e")
	first := mustConnect(t, uri)
	at := func(off int64) {
		t.Helper()
		if err := first.WriteAt(t.Context(), []byte("x"), off, 0); err != nil {
			t.Fatal(err)
		}
	}
	at(0x111)
	if err := os.Rename(filepath.Join(dir, "log"), filepath.Join(dir, "log.1")); err != nil {
		t.Fatal(err)
	}
	conf("transactionlog = log\nnonsense\n")
	p.signal(syscall.SIGHUP)
	p.await("the earlier one stays in force")
	at(0x222)
	conf("transactionlog = log2\n")
	p.signal(syscall.SIGHUP)
	p.await("configuration taken over changed=")
	c := mustConnect(t, uri)
	if err := c.WriteAt(t.Context(), []byte("x"), 0x333, 0); err != nil {
		t.Fatal(err)
	}
	first.Close()
	c.Close()
	p.stop()
	for name, want := range map[string]string{"log.1": "111", "log": "222", "log2": "333"} {
		got := printed(t, filepath.Join(dir, name))
		if strings.Count(got, "NBD_CMD_WRITE") != 1 || !strings.Contains(got, "O=0000000000000"+want) {
			t.Errorf("%s holds\n%s", name, got)
		}
	}
}

// TestTransactionLogFull: the server goes on when the log cannot be written.
func TestTransactionLogFull(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("needs /dev/full")
	}
	dir := harness.Dir(t)
	write(t, dir, "c.conf", "[generic]\nunixsock = s\n[e]\nexportname = memory:1M\ntransactionlog = /dev/full\ndatalog = true\n")
	p := launch(t, dir, nil, "-n", "-C", "c.conf")
	p.await("the transaction log cannot be written")
	p.await("serving exports=1")
	c := mustConnect(t, harness.UnixURI(filepath.Join(dir, "s"), "e"))
	for i := range int64(50) {
		if err := c.WriteAt(t.Context(), make([]byte, 16<<10), i*4096, 0); err != nil {
			t.Fatal(err)
		}
	}
	c.Close()
	p.stop()
	p.mu.Lock()
	defer p.mu.Unlock()
	if n := strings.Count(p.all.String(), "cannot be written"); n != 1 {
		t.Errorf("it was said %d times", n)
	}
	if want := fmt.Sprint("missing=", 2*50+1); !strings.Contains(p.all.String(), want) {
		t.Errorf("the log does not say %q", want)
	}
}

// TestControlChangeFails: a change that cannot be made when the clients have left leaves
// nothing behind, neither in what is shown nor in what the next change begins with.
func TestControlChangeFails(t *testing.T) {
	dir := harness.Dir(t)
	for name, size := range map[string]int{"one": 1 << 20, "two": 2 << 20, "three": 3 << 20} {
		write(t, dir, name, strings.Repeat("x", size))
	}
	write(t, dir, "c.conf", "[generic]\nunixsock = s\n[e]\nexportname = one\n")
	p := launch(t, dir, nil, "-n", "-C", "c.conf", "--control=ctl")
	p.await("serving exports=1")
	socket := filepath.Join(dir, "ctl")
	change := func(keys map[string]string) (c control.Changes) {
		t.Helper()
		ask(t, socket, control.Request{Op: control.OpChange, Export: "e", Keys: keys}, &c)
		return c
	}
	// An export that is on its way to other settings has arrived when this is answered.
	shown := func() control.Export {
		t.Helper()
		for until := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
			var list []control.Export
			ask(t, socket, control.Request{Op: control.OpList}, &list)
			if len(list) != 1 {
				t.Fatalf("%+v", list)
			}
			if s := list[0].State; s != "pending" && s != "moving" || time.Now().After(until) {
				return list[0]
			}
		}
	}
	for _, c := range []struct {
		gone   string
		source string
		size   int64
	}{{"two", "one", 1 << 20}, {"", "three", 3 << 20}} {
		client := mustConnect(t, harness.UnixURI(filepath.Join(dir, "s"), "e"))
		for _, name := range []string{"three", "two"} {
			if c.gone == "" {
				name = "three"
			}
			if got := change(map[string]string{"exportname": name}); len(got.Pending) != 1 {
				t.Errorf("%+v", got)
			}
		}
		if c.gone != "" {
			if err := os.Remove(filepath.Join(dir, c.gone)); err != nil {
				t.Fatal(err)
			}
		}
		client.Close()
		if x := shown(); x.Source != c.source || x.Size != c.size || x.State != "serving" {
			t.Errorf("without %q: %+v, want %s", c.gone, x, c.source)
		}
		if got := change(map[string]string{"maxconnections": "7"}); len(got.Changed) != 1 {
			t.Errorf("%+v", got)
		}
		if x := shown(); x.Source != c.source || x.Size != c.size || x.MaxConnections != 7 {
			t.Errorf("after another change: %+v, want %s", x, c.source)
		}
		change(map[string]string{"maxconnections": "0"})
	}
	p.stop()
}

// TestControlChangeKeepsKeys: what a change does not name stays, also where it is of a port,
// of TLS or of commands.
func TestControlChangeKeepsKeys(t *testing.T) {
	dir := harness.Dir(t)
	a := harness.NewAuthority(t, dir, "ca")
	write(t, dir, "c.conf", "[generic]\nunixsock = s\noldstyle = true\n"+harness.ServerLines(a.Issue(t, "server", "server", "localhost"), "")+strings.ReplaceAll(`
[old]
exportname = memory:1M
port = 0
listenaddr = 127.0.0.1
[tls]
exportname = memory:1M
force_tls = true
[hooks]
exportname = memory:1M
prerun = touch DIR/before
postrun = touch DIR/after
prerun_timeout = 50
transactionlog = log
datalog = true
timeout = 100
`, "DIR", dir))
	p := launch(t, dir, nil, "-n", "-C", "c.conf", "--control=ctl")
	p.await("serving exports=3")
	keys := func(name string) map[string]string {
		var x control.Section
		ask(t, filepath.Join(dir, "ctl"), control.Request{Op: control.OpShow, Export: name}, &x)
		return x.Keys
	}
	for _, name := range []string{"old", "tls", "hooks"} {
		before := keys(name)
		for _, limit := range []string{"2", "3", ""} {
			var c control.Changes
			ask(t, filepath.Join(dir, "ctl"), control.Request{Op: control.OpChange, Export: name, Keys: map[string]string{"maxconnections": limit}}, &c)
			if len(c.Changed) != 1 || c.Changed[0] != name {
				t.Errorf("%s, %q: %+v", name, limit, c)
			}
		}
		if after := keys(name); len(after) < 2 || !maps.Equal(after, before) {
			t.Errorf("%s has the keys %q, before %q", name, after, before)
		}
	}
	var list []control.Export
	ask(t, filepath.Join(dir, "ctl"), control.Request{Op: control.OpList}, &list)
	for _, x := range list {
		if x.TLS != (x.Name == "tls") {
			t.Errorf("%+v", x)
		}
	}
	c := mustConnect(t, harness.UnixURI(filepath.Join(dir, "s"), "hooks"))
	if err := c.WriteAt(t.Context(), []byte("written"), 0, block.FUA); err != nil {
		t.Fatal(err)
	}
	c.Close()
	p.stop()
	for _, name := range []string{"before", "after"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err != nil {
			t.Errorf("a command was not run: %v", err)
		}
	}
	if !strings.Contains(printed(t, filepath.Join(dir, "log")), "NBD_CMD_WRITE") {
		t.Error("nothing was logged")
	}
}
