package harness

import (
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// Config says how to start our server.
type Config struct {
	// Generic holds further lines of the section [generic].
	Generic string
	// Exports is the rest of the configuration file, with its section headers.
	Exports string
	// TCP makes it listen on a loopback port too. Certificates need it: they name
	// a host.
	TCP bool
	// Plain leaves the race detector out, for tests that measure memory.
	Plain bool
	// Env holds additional variables, NAME=value.
	Env []string
}

// Server is our server, running.
type Server struct {
	*Process
	Dir    string // a folder for the test's files
	Socket string // path of the unix socket
	Port   int    // with Config.TCP
	File   string // path of the configuration file
	cfg    Config
}

// Start starts our server and waits until it serves. When the test ends, the
// server is told to end, and must do so with success.
func Start(t testing.TB, cfg Config) *Server {
	t.Helper()
	return StartIn(t, Dir(t), cfg)
}

// StartIn is Start with a folder of the caller's.
func StartIn(t testing.TB, dir string, cfg Config) *Server {
	t.Helper()
	s := &Server{Dir: dir, Socket: filepath.Join(dir, "sock"), File: filepath.Join(dir, "config"), cfg: cfg}
	if cfg.TCP {
		s.Port = FreePort(t)
	}
	s.WriteConfig(t, cfg.Generic, cfg.Exports)
	s.spawn(t)
	t.Cleanup(func() {
		s.Stop()
		for _, bad := range []string{"DATA RACE", "panic", "goroutine "} {
			if strings.Contains(s.Log(), bad) {
				t.Errorf("the server's log says %q", bad)
			}
		}
	})
	return s
}

// spawn starts the program, and waits until it serves.
func (s *Server) spawn(t testing.TB) {
	t.Helper()
	bin := Binary
	if s.cfg.Plain {
		bin = PlainBinary
	}
	env := append([]string{"GORACE=halt_on_error=1 exitcode=66 atexit_sleep_ms=0"}, s.cfg.Env...)
	s.Process = Spawn(t, env, bin(t), "-n", "-C", s.File)
	s.AwaitListening("unix", s.Socket)
	if s.cfg.TCP {
		s.AwaitListening("tcp", s.TCPAddr())
	}
	s.AwaitText("serving") // by now it listens on what else the configuration names
}

// Restart starts the server anew, with the same files, socket and port, after it was
// killed or stopped.
func (s *Server) Restart(t testing.TB) {
	t.Helper()
	s.spawn(t)
	t.Cleanup(s.Process.Stop) // before it is killed by the cleanup of Spawn
}

// WriteConfig writes the configuration file anew. The server reads it on SIGHUP.
func (s *Server) WriteConfig(t testing.TB, generic, exports string) {
	t.Helper()
	var b strings.Builder
	fmt.Fprintf(&b, "[generic]\nunixsock = %s\nallowlist = true\n", s.Socket)
	if s.Port != 0 {
		fmt.Fprintf(&b, "duallisten = true\nlistenaddr = 127.0.0.1\nport = %d\n", s.Port)
	}
	fmt.Fprintf(&b, "%s\n%s\n", generic, exports)
	if err := os.WriteFile(s.File, []byte(b.String()), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TCPAddr returns the address of the loopback listener.
func (s *Server) TCPAddr() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(s.Port)) }

// URI names an export on the unix socket.
func (s *Server) URI(export string) string { return UnixURI(s.Socket, export) }

// TCPURI names an export on the loopback listener. The scheme is nbd or nbds.
func (s *Server) TCPURI(scheme, export string) string {
	return fmt.Sprintf("%s://localhost:%d/%s", scheme, s.Port, url.PathEscape(export))
}

// Dial connects to the unix socket. The connection is closed with the test.
func (s *Server) Dial(t testing.TB) net.Conn {
	t.Helper()
	return Dial(t, "unix", s.Socket)
}

// UnixURI names an export on a unix socket.
func UnixURI(socket, export string) string {
	return "nbd+unix:///" + url.PathEscape(export) + "?socket=" + url.QueryEscape(socket)
}

// Dial connects, and closes the connection with the test.
func Dial(t testing.TB, network, addr string) net.Conn {
	t.Helper()
	c, err := net.Dial(network, addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}
