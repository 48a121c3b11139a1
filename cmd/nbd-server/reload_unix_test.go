//go:build unix

package main

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"nbd.example/nbd/client"
	"nbd.example/nbd/internal/control"
	"nbd.example/nbd/test/harness"
)

// TestReloadLocked changes exports that nobody can open twice, a diff and a tree: with
// what was written, they go from the old device to the new one.
func TestReloadLocked(t *testing.T) {
	dir := harness.Dir(t)
	write(t, dir, "disk", strings.Repeat("old ", 1024))
	const text = `[generic]
unixsock = s
[w]
exportname = DIR/disk
waitfile = true
[t]
exportname = DIR/tree
treefiles = true
filesize = 1048576
`
	text2 := strings.ReplaceAll(text, "DIR", dir)
	write(t, dir, "c.conf", text2)
	p := launch(t, dir, nil, "-n", "-C", "c.conf")
	p.await("serving exports=2")
	names := []string{"w", "t"}
	for _, name := range names {
		c := mustConnect(t, harness.UnixURI(filepath.Join(dir, "s"), name))
		if err := c.WriteAt(t.Context(), []byte(name+" is kept"), 0, 0); err != nil {
			t.Fatal(err)
		}
		c.Close()
		p.await("client disconnected client=unix export=" + name)
	}
	// Another server has to stay away, and says from what.
	write(t, dir, "other.conf", strings.Replace(text2, "= s\n", "= s2\n", 1))
	q := launch(t, dir, nil, "-n", "-C", "other.conf")
	if line := q.await("in use by another device"); !strings.Contains(line, `export "w"`) || !strings.Contains(line, filepath.Join(dir, "disk.wait")) {
		t.Errorf("%s: want the export and the path", line)
	}
	if status := q.ends(); status != exitError {
		t.Errorf("the other server has ended with status %d", status)
	}

	write(t, dir, "c.conf", strings.ReplaceAll(text2, "exportname", "sync = true\nexportname"))
	p.signal(syscall.SIGHUP)
	if line := p.await("configuration"); !strings.Contains(line, `taken over`) || !strings.Contains(line, "changed=") {
		t.Fatal(line)
	}
	for _, name := range names {
		got := bytesOf(t, mustConnect(t, harness.UnixURI(filepath.Join(dir, "s"), name)), len("w is kept"))
		if string(got) != name+" is kept" {
			t.Errorf("%s has %q after the reload", name, got)
		}
	}
	p.stop()
}

// TestLogLines wants no part of an error dropped: what is joined deep inside is no
// list of its own.
func TestLogLines(t *testing.T) {
	var out strings.Builder
	p := &program{log: slog.New(slog.NewTextHandler(&out, nil))}
	inner := errors.Join(errors.New("it is in use"), nil)
	p.logLines(errors.Join(fmt.Errorf("export a: %w", inner), errors.New("export b: none")))
	if got := out.String(); strings.Count(got, "\n") != 2 || !strings.Contains(got, "export a: it is in use") || !strings.Contains(got, "export b: none") {
		t.Errorf("logged:\n%s", got)
	}
}

// TestStuckReload: signals are obeyed while a reload waits for a file that does not
// answer, here the rest of a configuration that comes out of a pipe.
func TestStuckReload(t *testing.T) {
	dir := harness.Dir(t)
	conf := strings.ReplaceAll("[generic]\nunixsock = s\n[e]\nexportname = memory:1M\nauthfile = DIR/rules\n", "DIR", dir)
	write(t, dir, "c.conf", conf)
	if err := syscall.Mkfifo(filepath.Join(dir, "rules"), 0o600); err != nil {
		t.Fatal(err)
	}
	p := launch(t, dir, nil, "-n", "-C", "c.conf")
	p.await("c.conf:5: authfile: " + filepath.Join(dir, "rules") + " is a pipe")
	if status := p.ends(); status != exitError {
		t.Errorf("status %d", status)
	}

	write(t, dir, "c.conf", strings.ReplaceAll(conf, "authfile", "#"))
	p = launch(t, dir, nil, "-n", "-C", "c.conf", "--control=ctl")
	p.await("serving exports=1")
	if err := os.Remove(filepath.Join(dir, "c.conf")); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(filepath.Join(dir, "c.conf"), 0o600); err != nil {
		t.Fatal(err)
	}
	p.signal(syscall.SIGHUP)
	w, err := os.OpenFile(filepath.Join(dir, "c.conf"), os.O_WRONLY, 0) // once the server reads it
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close() // there is never an end
	var status control.Status
	ask(t, filepath.Join(dir, "ctl"), control.Request{Op: control.OpStatus}, &status)
	if status.Busy == nil || len(status.Config) != 1 {
		t.Errorf("while the reload hangs: %+v", status)
	}
	p.stop()
}

// TestLogOfOldClients: who was there before a reload that names another transaction
// log is logged where it began, to its end, and no longer.
func TestLogOfOldClients(t *testing.T) {
	dir := harness.Dir(t)
	conf := func(log string) {
		write(t, dir, "c.conf", "[generic]\nunixsock = s\n[e]\nexportname = memory:1M\ntransactionlog = "+log+"\n")
	}
	conf("one")
	p := launch(t, dir, nil, "-n", "-C", "c.conf")
	p.await("serving exports=1")
	uri := harness.UnixURI(filepath.Join(dir, "s"), "e")
	old := mustConnect(t, uri)
	conf("two")
	p.signal(syscall.SIGHUP)
	p.await("configuration taken over")
	for _, c := range []*client.Conn{old, mustConnect(t, uri)} {
		if err := c.WriteAt(t.Context(), make([]byte, 512), 0, 0); err != nil {
			t.Fatal(err)
		}
		c.Close()
		p.await("client disconnected")
	}
	p.signal(syscall.SIGHUP) // now the first one can be closed
	p.await("configuration taken over")
	links, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", p.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) { // the log is closed a moment behind that line
		open := slices.ContainsFunc(links, func(link string) bool {
			to, err := os.Readlink(link)
			return err == nil && to == filepath.Join(dir, "one")
		})
		if !open {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the first log is still open")
		}
	}
	p.stop()
	for _, name := range []string{"one", "two"} {
		if got := printed(t, filepath.Join(dir, name)); strings.Count(got, "NBD_CMD_WRITE") != 1 {
			t.Errorf("log %s holds\n%s", name, got)
		}
	}
}
