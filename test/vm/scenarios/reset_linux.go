package scenarios

import (
	"context"
	"net"
	"path/filepath"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"nbd.example/nbd/backend/file"
	"nbd.example/nbd/block"
	"nbd.example/nbd/server"
	"nbd.example/nbd/test/vm/guest"
)

// What resets does.
const (
	resetWriters = 24
	resetWrite   = 1 * mib // much more together than sockets hold
)

// resets lets a server read no further, with more on its way than sockets hold, until the
// kernel gives its connections up. An end that stood behind what is not read would be seen
// by nobody; so the server must see a reset at once, while the kernel's driver has the same
// sockets still. Of what it has not received by then nothing reaches it any more, and what
// it has received does not come after newer writes.
func resets(t *guest.T) {
	for _, connections := range []int{1, 2} {
		resetsOf(t, connections)
	}
}

func resetsOf(t *guest.T, connections int) {
	image := guest.Empty(t, filepath.Join(t.TempDir(), "disk.img"), resetWriters*resetWrite)
	s := startDeaf(t, image)
	k := guest.Keep{URIs: []string{"nbd://" + s.address + "/disk"}, Connections: connections, Args: []string{"-t", "2"}}.Do(t, 0)
	f := guest.Direct(t, k.Path)
	write := func(version uint64) (ended chan error) {
		ended = make(chan error, resetWriters)
		for i := range int64(resetWriters) {
			go func() {
				_, err := f.WriteAt(guest.Filled(version<<32|uint64(i), resetWrite), i*resetWrite)
				ended <- err
			}()
		}
		return ended
	}
	deaf := s.deafen()
	old := write(1)
	given := awaitResets(t, deaf)
	if n := len(old); n > 0 {
		t.Errorf("%d writes have ended while older copies of them may still be on their way", n)
	}
	for _, c := range given {
		_, unread := c.state(t)
		c.unread, c.before = int64(unread), c.received.Load()
	}
	s.listen()
	for range resetWriters {
		t.Must(<-old, "a write that was sent again")
	}
	fresh := write(2)
	for range resetWriters {
		t.Must(<-fresh, "a newer write")
	}
	for _, c := range given {
		<-c.over
		if got := c.received.Load() - c.before; got != c.unread {
			t.Errorf("%d bytes were received after the reset, and %d were there", got, c.unread)
		}
	}
	f.Close()
	k.Detach()
	f = guest.Open(t, image, unix.O_RDONLY)
	for i := range int64(resetWriters) {
		guest.ReadBack(t, f, guest.Filled(2<<32|uint64(i), resetWrite), i*resetWrite)
	}
	f.Close()
	t.Logf("%d of %d connections were reset", len(given), len(deaf))
}

// awaitResets waits until all connections are reset on which something is unread, and
// returns them.
func awaitResets(t *guest.T, deaf []*deafConn) (given []*deafConn) {
	t.AwaitFor(back, "all that has something unread is reset", func() bool {
		given = nil
		for _, c := range deaf {
			state, unread := c.state(t)
			if unread > 0 && state != tcpClose {
				return false
			}
			if unread > 0 {
				given = append(given, c)
			}
		}
		return len(given) > 0
	})
	return given
}

// deafServer is a server in this very process that stops reading from its connections when
// it is told to.
type deafServer struct {
	address string

	open chan struct{} // closed when it reads from all again

	mu    sync.Mutex
	conns map[*deafConn]bool
}

// deafConn is a connection of the server.
type deafConn struct {
	net.Conn // hides that it is a plain socket, so that all is read by Read
	server   *deafServer
	deaf     atomic.Bool
	received atomic.Int64
	over     chan struct{} // closed when the server is done with it

	unread, before int64 // of the scenario
}

// startDeaf serves an image as "disk", over TCP.
func startDeaf(t *guest.T, image string) *deafServer {
	srv, err := server.New(server.Config{Exports: []*server.Export{{
		Name: "disk",
		Open: func(context.Context, server.Client) (*block.Device, error) {
			b, err := file.Open(file.Config{Path: image})
			if err != nil {
				return nil, err
			}
			return block.New(b)
		},
	}}})
	t.Must(err, "server")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	t.Must(err, "listen")
	s := &deafServer{address: l.Addr().String(), open: make(chan struct{}), conns: map[*deafConn]bool{}}
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return // the scenario ends
			}
			c := &deafConn{Conn: conn, server: s, over: make(chan struct{})}
			s.mu.Lock()
			s.conns[c] = true
			s.mu.Unlock()
			serving.Go(func() {
				srv.ServeConn(t.Context(), c) // it ends as the client wants it
				s.mu.Lock()
				delete(s.conns, c)
				s.mu.Unlock()
				close(c.over)
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		s.listen()
		t.Must(srv.Shutdown(t.Context()), "shut the server down")
		serving.Wait()
	})
	return s
}

// deafen has the server read nothing more from the connections that it has, and returns them.
func (s *deafServer) deafen() (list []*deafConn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		c.deaf.Store(true)
		list = append(list, c)
	}
	return list
}

// listen has it read again, for good.
func (s *deafServer) listen() {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.open:
	default:
		close(s.open)
	}
}

func (c *deafConn) Read(p []byte) (int, error) {
	if c.deaf.Load() {
		<-c.server.open
	}
	n, err := c.Conn.Read(p)
	c.received.Add(int64(n))
	return n, err
}

// NetConn returns the socket, whose state the server asks for.
func (c *deafConn) NetConn() net.Conn { return c.Conn }

// tcpClose is the state TCP_CLOSE of linux/include/net/tcp_states.h: a peer's reset leads
// there at once, its end does not.
const tcpClose = 7

// state returns the state of the socket, and how many bytes wait in it.
func (c *deafConn) state(t *guest.T) (state uint8, unread int) {
	raw, err := c.Conn.(*net.TCPConn).SyscallConn()
	t.Must(err, "socket")
	var info *unix.TCPInfo
	var failed error
	err = raw.Control(func(fd uintptr) {
		if info, failed = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); failed == nil {
			unread, failed = unix.IoctlGetInt(int(fd), unix.TIOCINQ)
		}
	})
	if err != nil {
		return 0, 0 // the server has closed it
	}
	t.Must(failed, "state of a socket")
	return info.State, unread
}
