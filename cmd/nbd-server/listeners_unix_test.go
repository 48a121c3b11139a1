//go:build unix

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"nbd.example/nbd/internal/control"
	"nbd.example/nbd/test/harness"
)

// TestReloadListeners moves a running server to other addresses. Who is connected stays so.
func TestReloadListeners(t *testing.T) {
	dir := harness.Dir(t)
	conf := func(generic, exports string) {
		write(t, dir, "c.conf", "[generic]\ncontrol = ctl\n"+generic+"\n[a]\nexportname = memory:1M\n"+exports)
	}
	path := func(name string) string { return filepath.Join(dir, name) }
	exists := func(name string, want bool) {
		t.Helper()
		if _, err := os.Lstat(path(name)); err == nil != want {
			t.Errorf("the socket %s: %v; want it there: %v", name, err, want)
		}
	}
	conf("unixsock = s", "")
	p := launch(t, dir, nil, "-n", "-C", "c.conf")
	p.await("serving exports=1")
	a := mustConnect(t, harness.UnixURI(path("s"), "a"))
	if err := a.WriteAt(t.Context(), []byte("kept"), 0, 0); err != nil {
		t.Fatal(err)
	}

	other, err := net.Listen("unix", path("taken"))
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	conf("unixsock = taken\nlisten = unix:t", "[b]\nexportname = memory:1M\n")
	p.signal(syscall.SIGHUP)
	p.await("c.conf:3: unixsock: listen on " + path("taken") + ": another server listens on it")
	p.await("the earlier one stays in force")
	exists("t", false)
	exists("taken", true)
	if _, err := connect(t, harness.UnixURI(path("s"), "b")); err == nil {
		t.Error("an export of a faulty configuration is served")
	}

	// A new export whose file is missing: nothing is listened on either.
	conf("unixsock = t", "[b]\nexportname = "+path("none")+"\n")
	p.signal(syscall.SIGHUP)
	p.await("the earlier one stays in force")
	exists("t", false)
	mustConnect(t, harness.UnixURI(path("s"), "a")).Close()

	conf("unixsock = t", "")
	p.signal(syscall.SIGHUP)
	p.await("listening address=" + path("t"))
	p.await("listening no longer address=" + path("s"))
	exists("s", false)
	if got := bytesOf(t, a, 4); string(got) != "kept" {
		t.Errorf("the old connection reads %q", got)
	}
	if got := bytesOf(t, mustConnect(t, harness.UnixURI(path("t"), "a")), 4); string(got) != "kept" {
		t.Errorf("by the new address one reads %q", got)
	}
	var s control.Status
	ask(t, path("ctl"), control.Request{Op: control.OpStatus}, &s)
	if !slices.Equal(s.Listening, []string{path("t")}) {
		t.Errorf("the status is that it listens on %q", s.Listening)
	}
	// Who asks for the reload is told; who asks once more has changed nothing.
	conf("unixsock = u", "")
	for _, want := range [][]string{{path("u")}, nil} {
		var done control.Changes
		ask(t, path("ctl"), control.Request{Op: control.OpReload}, &done)
		if !slices.Equal(done.Listening, want) {
			t.Errorf("after a reload that was asked for it listens on %q, want %q", done.Listening, want)
		}
	}
	p.stop()
	exists("u", false)
}

// TestListenersNeedRestart: what cannot be opened beside what is there, or without rights
// that are given up, stays as it was, and is said; the rest of the configuration is
// taken over.
func TestListenersNeedRestart(t *testing.T) {
	dir := harness.Dir(t)
	port := strconv.Itoa(harness.FreePort(t))
	conf := func(generic, exports string) {
		write(t, dir, "c.conf", "[generic]\n"+generic+"\n[a]\nexportname = memory:1M\n"+exports)
		if err := os.Chmod(filepath.Join(dir, "c.conf"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	check := func(p *instance, uri, generic string) {
		t.Helper()
		conf(generic, "[b]\nexportname = memory:1M\n")
		p.signal(syscall.SIGHUP)
		p.await("that change needs a restart of the server")
		p.await("configuration taken over")
		mustConnect(t, uri).Close()
	}
	t.Run("port", func(t *testing.T) {
		conf("port = "+port, "")
		p := launch(t, dir, nil, "-n", "-C", "c.conf")
		p.await("serving exports=1")
		check(p, "nbd://127.0.0.1:"+port+"/b", "port = "+port+"\nlistenaddr = 127.0.0.1\nlisten = unix:t")
		if _, err := os.Lstat(filepath.Join(dir, "t")); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("one of the new addresses is listened on: %v", err)
		}
		p.stop()
	})
	t.Run("rights", func(t *testing.T) {
		if os.Geteuid() != 0 {
			t.Skip("needs root, who can give up rights")
		}
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		conf("user = 65534\nunixsock = s", "")
		p := launch(t, dir, nil, "-n", "-C", "c.conf")
		p.await("serving exports=1")
		sock := filepath.Join(dir, "s")
		if err := os.Chmod(sock, 0o777); err != nil {
			t.Fatal(err)
		}
		check(p, harness.UnixURI(sock, "b"), "user = 65534\nunixsock = t")
		p.stop()
	})
}

// TestControlListens: the port for antique clients of an export that is added while the
// server runs, and removed.
func TestControlListens(t *testing.T) {
	dir := harness.Dir(t)
	write(t, dir, "c.conf", "[generic]\ncontrol = ctl\nunixsock = s\noldstyle = true\nlistenaddr = 127.0.0.1\nduallisten = true\nport = "+
		strconv.Itoa(harness.FreePort(t))+"\n[a]\nexportname = memory:1M\nport = "+strconv.Itoa(harness.FreePort(t))+"\n")
	p := launch(t, dir, nil, "-n", "-C", "c.conf")
	p.await("serving exports=1")
	port := strconv.Itoa(harness.FreePort(t))
	request := control.Request{Op: control.OpAdd, Export: "b", Keys: map[string]string{"exportname": "memory:2M", "port": port}}
	ask(t, filepath.Join(dir, "ctl"), request, nil)
	want := fmt.Sprintf(`127.0.0.1:%s(oldstyle "b")`, port)
	var s control.Status
	ask(t, filepath.Join(dir, "ctl"), control.Request{Op: control.OpStatus}, &s)
	if !slices.Contains(s.Listening, want) {
		t.Errorf("listening on %q, want %s, too", s.Listening, want)
	}
	c, err := net.Dial("tcp", "127.0.0.1:"+port)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	greeting := make([]byte, 24)
	if _, err := c.Read(greeting); err != nil || !strings.HasPrefix(string(greeting), "NBDMAGIC\x00\x00\x42\x02\x81\x86\x12\x53") {
		t.Errorf("an antique client reads %x, %v", greeting, err)
	}
	ask(t, filepath.Join(dir, "ctl"), control.Request{Op: control.OpRemove, Export: "b", Clients: "cut"}, nil)
	if _, err := net.Dial("tcp", "127.0.0.1:"+port); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("behind the removal: %v", err)
	}
	p.stop()

	write(t, dir, "c.conf", "[generic]\ncontrol = ctl\nunixsock = s\n[a]\nexportname = memory:1M\nport = 1\n")
	p = launch(t, dir, nil, "-n", "-C", "c.conf")
	p.await("serving exports=1")
	client, err := control.Dial(t.Context(), filepath.Join(dir, "ctl"))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if err := client.Do(t.Context(), request, nil); err == nil || !strings.Contains(err.Error(), "without oldstyle") {
		t.Errorf("a port that nobody listens on: %v", err)
	}
	// That of a file, which is passed over, is no obstacle.
	if err := client.Do(t.Context(), control.Request{Op: control.OpChange, Export: "a", Keys: map[string]string{"readonly": "true"}}, nil); err != nil {
		t.Error(err)
	}
	p.stop()
}
