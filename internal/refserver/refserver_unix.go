//go:build unix

package refserver

import (
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"nbd.example/nbd/internal/testgate"
)

// Server is a reference that runs.
type Server struct {
	socket string
	pid    int
}

// Start starts it with exports, which are sections of its configuration, and waits
// until it serves. It ends with the test, or by Stop.
func Start(t testing.TB, exports string) *Server {
	t.Helper()
	// The path of a socket must be short.
	dir, err := os.MkdirTemp("", "ref")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	s := &Server{socket: filepath.Join(dir, "s")}
	conf, pid := filepath.Join(dir, "conf"), filepath.Join(dir, "pid")
	text := fmt.Sprintf("[generic]\nunixsock = %s\nallowlist = true\n%s", s.socket, exports)
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	// It goes to the background, and its first process ends.
	if out, err := exec.Command(testgate.Find("nbd-server"), "-C", conf, "-p", pid).CombinedOutput(); err != nil {
		t.Fatalf("the reference: %v: %s", err, out)
	}
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(10 * time.Millisecond) {
		c, err := net.Dial("unix", s.socket)
		if err == nil {
			c.Close()
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the reference does not serve: %v", err)
		}
	}
	p, err := os.ReadFile(pid)
	if err == nil {
		s.pid, err = strconv.Atoi(strings.TrimSpace(string(p)))
	}
	if err != nil {
		t.Fatalf("the reference's process: %v", err)
	}
	t.Cleanup(s.Stop)
	return s
}

// URI names an export.
func (s *Server) URI(export string) string {
	return "nbd+unix:///" + url.PathEscape(export) + "?socket=" + url.QueryEscape(s.socket)
}

// Stop ends it, and those of its processes that serve clients.
func (s *Server) Stop() {
	if s.pid <= 1 {
		return
	}
	syscall.Kill(s.pid, syscall.SIGTERM)
	s.pid = 0
	// It takes its socket away last of all, or leaves it.
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		c, err := net.Dial("unix", s.socket)
		if err != nil {
			return
		}
		c.Close()
	}
}

// Upload has a client write n bytes of a file to an export, from off on, and flush.
func Upload(t testing.TB, uri, file string, off, n int64) {
	t.Helper()
	transfer(t, uri, file, "rb", "h.pwrite(f.read(k), off+i)", off, n)
}

// Download has a client read n bytes of an export, from off on, into a file.
func Download(t testing.TB, uri, file string, off, n int64) {
	t.Helper()
	transfer(t, uri, file, "wb", "f.write(h.pread(k, off+i))", off, n)
}

func transfer(t testing.TB, uri, file, mode, work string, off, n int64) {
	t.Helper()
	script := fmt.Sprintf(`
off, n, step = %d, %d, 1000001
with open(%q, %q) as f:
    for i in range(0, n, step):
        k = min(step, n-i)
        %s
if %q == "rb": h.flush()
h.shutdown()
`, off, n, file, mode, work, mode)
	cmd := exec.Command(testgate.Find("nbdsh"), "-u", uri, "-c", script)
	// The system's own python before others.
	cmd.Env = append(os.Environ(), "PATH=/usr/bin:/bin:"+os.Getenv("PATH"), "LC_ALL=C")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("nbdsh: %v: %s", err, out)
	}
}
