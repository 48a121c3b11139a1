package guest

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"nbd.example/nbd/block"
	"nbd.example/nbd/handshake"
	"nbd.example/nbd/proto"
	"nbd.example/nbd/server"
)

// Local is a server in this very process, for kernel devices that are attached by our own
// packages. Its export is "disk".
type Local struct {
	t      *T
	server *server.Server

	mu     sync.Mutex
	conns  []net.Conn // of the server
	served sync.WaitGroup
}

// ServeLocal serves a device, which is the server's from then on.
func ServeLocal(t *T, d *block.Device, readOnly bool) *Local {
	s, err := server.New(server.Config{Exports: []*server.Export{{
		Name: "disk", ReadOnly: readOnly,
		Open: func(context.Context, server.Client) (*block.Device, error) { return d, nil },
	}}})
	t.Must(err, "server")
	l := &Local{t: t, server: s}
	t.Cleanup(func() {
		l.Kill()
		l.served.Wait()
		t.Must(s.Shutdown(t.Context()), "shut the server down")
	})
	return l
}

// Kill ends all connections at once, as the death of a server does.
func (l *Local) Kill() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, c := range l.conns {
		c.Close()
	}
	l.conns = nil
}

// Sockets makes connections that are ready for the kernel: by "tcp", "unix", or a "pair"
// of sockets. They are closed with the scenario; whoever wants that earlier may. The
// flags are those that the server sent.
func (l *Local) Sockets(way string, n int) (list []*os.File, flags proto.TransmissionFlags, size int64) {
	for range n {
		mine, theirs := l.connect(way)
		l.mu.Lock()
		l.conns = append(l.conns, theirs)
		l.mu.Unlock()
		l.served.Go(func() {
			l.server.ServeConn(l.t.Context(), theirs) // it ends as the scenario wants it
		})
		h, err := handshake.NewClient(l.t.Context(), mine)
		l.t.Must(err, "greeting")
		a, err := h.Go(l.t.Context(), "disk")
		l.t.Must(err, "go")
		f, err := mine.(interface{ File() (*os.File, error) }).File()
		l.t.Must(err, "socket")
		mine.Close()
		l.t.Cleanup(func() { f.Close() })
		list, flags, size = append(list, f), a.Export.Flags, int64(a.Export.Size)
	}
	return list, flags, size
}

// connect makes a connection.
func (l *Local) connect(way string) (mine, theirs net.Conn) {
	if way == "pair" {
		return Pair(l.t)
	}
	address := "127.0.0.1:0"
	if way == "unix" {
		address = filepath.Join(l.t.TempDir(), "s")
	}
	listener, err := net.Listen(way, address)
	l.t.Must(err, "listen")
	defer listener.Close()
	mine, err = net.Dial(way, listener.Addr().String())
	l.t.Must(err, "dial")
	theirs, err = listener.Accept()
	l.t.Must(err, "accept")
	return mine, theirs
}

// Pair returns two ends of a connection.
func Pair(t *T) (a, b net.Conn) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	t.Must(err, "socket pair")
	var conns [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "socket pair")
		conns[i], err = net.FileConn(f)
		t.Must(err, "socket pair")
		f.Close()
	}
	return conns[0], conns[1]
}

// BlockedThreads counts the threads of this process that wait for a device (state D).
func BlockedThreads(t *T) (n int) {
	list, err := filepath.Glob("/proc/self/task/*/stat")
	t.Must(err, "threads")
	for _, path := range list {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // it has just ended
		}
		// 123 (name) D …; the name may hold anything.
		if _, rest, ok := strings.Cut(string(text), ") "); ok && strings.HasPrefix(rest, "D") {
			n++
		}
	}
	return n
}
