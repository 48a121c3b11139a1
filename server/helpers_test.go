package server

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"nbd.example/nbd/block"
	"nbd.example/nbd/handshake"
	"nbd.example/nbd/proto"
	"nbd.example/nbd/transmission"
)

// limit bounds every wait of the tests; reaching it is a failure.
const limit = 30 * time.Second

func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	t.Cleanup(cancel)
	return ctx
}

// wait waits for an event.
func wait[T any](t testing.TB, what string, ch <-chan T) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(limit):
		t.Fatalf("%s: nothing happened", what)
		panic("unreachable")
	}
}

// disk is a disk that remembers who has it open.
type disk struct {
	size      int
	exclusive bool // opening it twice is an error
	caps      func(*block.Caps)

	mu      sync.Mutex
	data    []byte
	holders int
	opened  int
	fail    error         // of the next opens
	flush   error         // of the next flushes
	bad     error         // of the next closes
	boom    bool          // closing panics
	stall   chan struct{} // not nil: reads wait for it
	reading chan struct{} // is told of each read that waits
	closed  chan struct{} // is told of each close
}

func newDisk() *disk {
	return &disk{size: 1 << 20, data: make([]byte, 1<<20), closed: make(chan struct{}, 1000), reading: make(chan struct{}, 1000)}
}

func (d *disk) open(context.Context, Client) (*block.Device, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.fail != nil {
		return nil, d.fail
	}
	if d.exclusive && d.holders > 0 {
		return nil, &net.OpError{Op: "open", Err: syscall.EBUSY}
	}
	d.holders++
	d.opened++
	return block.New(&diskFile{d})
}

func (d *disk) counts() (holders, opened int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.holders, d.opened
}

func (d *disk) set(f func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f()
}

// diskFile is one opened disk.
type diskFile struct{ d *disk }

func (f *diskFile) Caps() block.Caps {
	c := block.Caps{Size: int64(f.d.size), MultiConn: true, Instance: "test"}
	if f.d.caps != nil {
		f.d.caps(&c)
	}
	return c
}

func (f *diskFile) ReadAt(_ context.Context, p []byte, off int64) error {
	f.d.mu.Lock()
	stall := f.d.stall
	f.d.mu.Unlock()
	if stall != nil {
		f.d.reading <- struct{}{}
		<-stall
	}
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	copy(p, f.d.data[off:])
	return nil
}

func (f *diskFile) WriteAt(_ context.Context, p []byte, off int64, _ block.Flags) error {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	copy(f.d.data[off:], p)
	return nil
}

func (f *diskFile) Flush(context.Context) error {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	return f.d.flush
}

func (f *diskFile) Close() error {
	f.d.mu.Lock()
	f.d.holders--
	err, boom := f.d.bad, f.d.boom
	f.d.mu.Unlock()
	f.d.closed <- struct{}{}
	if boom {
		panic("in Close")
	}
	return err
}

// newServer makes a server that is shut down, and then has left nothing open,
// when the test ends.
func newServer(t testing.TB, cfg Config, disks ...*disk) *Server {
	t.Helper()
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Shutdown(testContext(t)); err != nil {
			t.Errorf("Shutdown: %v", err)
		}
		for i, d := range disks {
			if n, _ := d.counts(); n != 0 {
				t.Errorf("disk %d is still open %d times", i, n)
			}
		}
	})
	return s
}

// peer is a client of a server under test.
type peer struct {
	t   testing.TB
	c   *handshake.Client
	nc  net.Conn
	end chan error // what ServeConn returned
}

// from makes a connection seem to come from an address.
type from struct {
	net.Conn
	addr net.Addr
}

func (c from) RemoteAddr() net.Addr { return c.addr }

func tcpAddr(s string) net.Addr { return &net.TCPAddr{IP: net.ParseIP(s), Port: 1234} }

// connect begins a connection through a pipe; addr may be nil.
func connect(t testing.TB, s *Server, addr net.Addr) *peer {
	t.Helper()
	here, there := net.Pipe()
	var nc net.Conn = there
	if addr != nil {
		nc = from{there, addr}
	}
	return connectOver(t, s, here, nc)
}

// connectTCP begins a connection by TCP: unlike a pipe it lets both sides write
// at the same time.
func connectTCP(t testing.TB, s *Server) *peer {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	here, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	there, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return connectOver(t, s, here, there)
}

func connectOver(t testing.TB, s *Server, here, nc net.Conn) *peer {
	t.Helper()
	p := &peer{t: t, nc: here, end: make(chan error, 1)}
	go func() { p.end <- s.ServeConn(context.Background(), nc) }()
	t.Cleanup(func() { here.Close() })
	var err error
	if p.c, err = handshake.NewClient(testContext(t), here); err != nil {
		t.Fatalf("greeting: %v", err)
	}
	return p
}

// use chooses an export and begins the transmission phase.
func (p *peer) use(name string) *user {
	p.t.Helper()
	a, err := p.c.Go(testContext(p.t), name, proto.InfoBlockSize)
	if err != nil {
		p.t.Fatalf("Go(%q): %v", name, err)
	}
	return p.begin(a)
}

func (p *peer) begin(a *handshake.Agreement) *user {
	return &user{p, a, transmission.NewDemux(a.Conn, &transmission.DemuxConfig{Structured: a.Structured, Contexts: a.Contexts, Early: a.Early})}
}

// refused expects that an export is refused for a reason.
func (p *peer) refused(name string, want error) {
	p.t.Helper()
	if _, err := p.c.Go(testContext(p.t), name); !errors.Is(err, want) {
		p.t.Fatalf("Go(%q): %v, want %v", name, err, want)
	}
}

// abort ends the handshake, and waits for the server.
func (p *peer) abort() {
	p.t.Helper()
	p.c.Abort(testContext(p.t))
	if err := wait(p.t, "end of the connection", p.end); err != nil {
		p.t.Fatalf("ServeConn after ABORT: %v", err)
	}
}

// user is a client in the transmission phase.
type user struct {
	*peer
	a *handshake.Agreement
	d *transmission.Demux
}

func (u *user) do(cmd proto.Command, off uint64, data []byte) error {
	return u.d.Do(testContext(u.t), &transmission.Call{Command: cmd, Offset: off, Data: data})
}

// works writes and reads something.
func (u *user) works() {
	u.t.Helper()
	if err := u.do(proto.CmdWrite, 4096, []byte("hello")); err != nil {
		u.t.Fatal(err)
	}
	got := make([]byte, 5)
	if err := u.do(proto.CmdRead, 4096, got); err != nil || string(got) != "hello" {
		u.t.Fatalf("read %q, %v", got, err)
	}
}

// leave disconnects, and waits for the server.
func (u *user) leave() {
	u.t.Helper()
	u.d.Disconnect(testContext(u.t))
	if err := wait(u.t, "end of the connection", u.end); err != nil {
		u.t.Fatalf("ServeConn after DISC: %v", err)
	}
}

// logBuffer collects a log.
type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *logBuffer) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(b, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// lines returns the lines with a message.
func (b *logBuffer) lines(msg string) []string {
	b.mu.Lock()
	defer b.mu.Unlock()
	var all []string
	for l := range strings.Lines(b.buf.String()) {
		if strings.Contains(l, "msg="+msg) || strings.Contains(l, `msg="`+msg) {
			all = append(all, l)
		}
	}
	return all
}
