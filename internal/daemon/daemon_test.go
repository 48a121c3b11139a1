package daemon

import (
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// sockPath returns a path for a socket: short, as sockets want it.
func sockPath(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "sock")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "s")
}

// stale leaves a socket that nobody serves.
func stale(t *testing.T, path string) {
	t.Helper()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	if _, err := os.Lstat(path); err != nil {
		t.Fatalf("the stale socket is not there: %v", err)
	}
}

func TestListenUnix(t *testing.T) {
	path := sockPath(t)
	stale(t, path)
	l, err := ListenUnix(t.Context(), path)
	if err != nil {
		t.Fatalf("over a stale socket: %v", err)
	}
	if _, err := ListenUnix(t.Context(), path); err == nil || !strings.Contains(err.Error(), "another server listens") {
		t.Errorf("on a socket in use = %v, want a refusal", err)
	}
	if c, err := net.Dial("unix", path); err != nil {
		t.Errorf("the first listener is gone: %v", err)
	} else {
		c.Close()
	}
	l.Close()
	if _, err := os.Lstat(path); err == nil {
		t.Error("closing the listener left its socket")
	}
}

func TestListenUnixNotASocket(t *testing.T) {
	path := sockPath(t)
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := ListenUnix(t.Context(), path); err == nil || !strings.Contains(err.Error(), "not a socket") {
		t.Errorf("over a file = %v, want a refusal", err)
	}
	if b, _ := os.ReadFile(path); string(b) != "precious" {
		t.Errorf("the file is now %q", b)
	}
}

// TestListenUnixLong: a path that no socket can have is called that.
func TestListenUnixLong(t *testing.T) {
	path := filepath.Join(t.TempDir(), strings.Repeat("x", 120))
	if _, err := ListenUnix(t.Context(), path); err == nil || !strings.Contains(err.Error(), "choose a shorter one") {
		t.Errorf("%v, want that the path is too long", err)
	}
}

// TestListenUnixRace lets many listeners find one stale socket: exactly one wins.
func TestListenUnixRace(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("Windows has no lock on a folder; which of two servers wins there is not promised")
	}
	path := sockPath(t)
	stale(t, path)
	var wg sync.WaitGroup
	got := make(chan net.Listener, 16)
	for range cap(got) {
		wg.Go(func() {
			if l, err := ListenUnix(t.Context(), path); err == nil {
				got <- l
			}
		})
	}
	wg.Wait()
	if len(got) != 1 {
		t.Errorf("%d listeners on one path, want 1", len(got))
	}
	close(got)
	for l := range got {
		l.Close()
	}
}

func TestWritePID(t *testing.T) {
	name := filepath.Join(t.TempDir(), "pid")
	remove, err := WritePID(name)
	if err != nil {
		t.Fatal(err)
	}
	b, _ := os.ReadFile(name)
	if n, err := strconv.Atoi(strings.TrimSpace(string(b))); err != nil || n != os.Getpid() {
		t.Errorf("the file says %q", b)
	}
	if err := remove(); err != nil {
		t.Errorf("remove: %v", err)
	}
	if _, err := os.Stat(name); err == nil {
		t.Error("the file is still there")
	}

	remove, err = WritePID(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte("1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := remove(); err != nil {
		t.Errorf("remove of another's: %v", err)
	}
	if _, err := os.Stat(name); err != nil {
		t.Errorf("another's file was removed: %v", err)
	}
	if _, err := WritePID(filepath.Join(name, "x")); err == nil {
		t.Error("wrote to a file below a file")
	} else if _, ok := err.(interface{ Unwrap() error }); !ok {
		t.Errorf("%v does not wrap its cause", err)
	}
}

func TestLookup(t *testing.T) {
	id, err := lookup("12345678", "87654321")
	if err != nil || id.uid != 12345678 || id.gid != 87654321 {
		t.Errorf("numbers: %+v, %v", id, err)
	}
	if id, err = lookup("", ""); err != nil || id.uid != -1 || id.gid != -1 {
		t.Errorf("nothing: %+v, %v", id, err)
	}
	if _, err = lookup("no such user", ""); err == nil || !strings.Contains(err.Error(), `find user "no such user"`) {
		t.Errorf("a user that is not there: %v", err)
	}
	if _, err = lookup("", "no such group"); err == nil || !strings.Contains(err.Error(), `find group "no such group"`) {
		t.Errorf("a group that is not there: %v", err)
	}
}

func TestNotAChild(t *testing.T) {
	c := AsChild()
	if c != nil {
		t.Fatal("this test is nobody's child")
	}
	if err := c.Ready(); err != nil {
		t.Errorf("Ready of nil: %v", err)
	}
	if _, err := os.Stdout.Stat(); err != nil {
		t.Errorf("Ready of nil closed standard output: %v", err)
	}
}
