package server

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"nbd.example/nbd/block"
	"nbd.example/nbd/handshake"
	"nbd.example/nbd/proto"
)

// dialTCP connects to s by TCP and chooses an export.
func dialTCP(t *testing.T, s *Server, name string) (net.Conn, *handshake.Agreement) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go s.Serve(l)
	nc, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	c, err := handshake.NewClient(testContext(t), nc)
	if err != nil {
		t.Fatal(err)
	}
	a, err := c.Go(testContext(t), name)
	if err != nil {
		t.Fatal(err)
	}
	return nc, a
}

// What the server has read when it shuts down is answered, also if the client
// has sent more than it reads; then the connection ends, then the device is closed.
func TestShutdownDrains(t *testing.T) {
	d := newDisk()
	d.stall = make(chan struct{})
	copy(d.data, "precious")
	s := newServer(t, Config{Exports: []*Export{{Name: "a", Open: d.open}}}, d)
	nc, _ := dialTCP(t, s, "a")
	r := proto.Request{Command: proto.CmdRead, Cookie: 77, Length: 8}
	if _, err := nc.Write(proto.AppendRequest(nil, &r)); err != nil {
		t.Fatal(err)
	}
	wait(t, "read", d.reading)

	down := make(chan error, 1)
	go func() { down <- s.Shutdown(testContext(t)) }()
	<-s.drain.Done()
	nc.Write(make([]byte, 4096)) // which nobody will read
	d.expect(t, 1, 1)
	close(d.stall)

	got, err := io.ReadAll(nc)
	if err != nil || len(got) != proto.SimpleReplySize+8 || string(got[proto.SimpleReplySize:]) != "precious" {
		t.Errorf("read %q, %v", got, err)
	}
	nc.Close()
	if err := wait(t, "Shutdown", down); err != nil {
		t.Errorf("Shutdown: %v", err)
	}
	d.expect(t, 0, 1)
}

func TestShutdownInHandshake(t *testing.T) {
	d := newDisk()
	s := newServer(t, Config{Exports: []*Export{{Name: "a", Open: d.open}}, AllowList: true}, d)
	talks, silent := connect(t, s, nil), connect(t, s, nil)
	down := make(chan error, 1)
	go func() { down <- s.Shutdown(testContext(t)) }()
	<-s.drain.Done()
	talks.refused("a", handshake.ErrShutdown)
	talks.abort()
	if err := wait(t, "end of a silent client", silent.end); !errors.Is(err, ErrClosed) {
		t.Errorf("a silent client's connection ended with: %v", err)
	}
	if err := wait(t, "Shutdown", down); err != nil {
		t.Errorf("Shutdown: %v", err)
	}
}

func TestShutdownCuts(t *testing.T) {
	d := newDisk()
	d.stall = make(chan struct{})
	s, err := New(Config{Exports: []*Export{{Name: "a", Open: d.open}}})
	if err != nil {
		t.Fatal(err)
	}
	s.patience = 1 // its read will not return anyhow
	u := connect(t, s, nil).use("a")
	read := make(chan error, 1)
	go func() { read <- u.do(proto.CmdRead, 0, make([]byte, 8)) }()
	wait(t, "read", d.reading)

	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := s.Shutdown(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Shutdown: %v", err)
	}
	if err := wait(t, "client", read); err == nil {
		t.Error("the client's read succeeded")
	}
	d.expect(t, 1, 1) // a device in use is not closed
	close(d.stall)
	wait(t, "end", u.end)
	if err := s.Shutdown(testContext(t)); err != nil {
		t.Errorf("second Shutdown: %v", err)
	}
	d.expect(t, 0, 1)
}

func TestAfterShutdown(t *testing.T) {
	d := newDisk()
	s, err := New(Config{Exports: []*Export{{Name: "a", Open: d.open}}})
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	for range 3 {
		all.Go(func() {
			if err := s.Shutdown(testContext(t)); err != nil {
				t.Errorf("Shutdown: %v", err)
			}
		})
	}
	all.Wait()
	d.expect(t, 0, 1)
	if _, err := s.Reload(Config{}); !errors.Is(err, ErrClosed) {
		t.Errorf("Reload: %v", err)
	}
	_, there := net.Pipe()
	if err := s.ServeConn(testContext(t), there); !errors.Is(err, ErrClosed) {
		t.Errorf("ServeConn: %v", err)
	}
	d.expect(t, 0, 1)
}

// A reload that is caught by a shutdown leaves nothing open.
func TestShutdownDuringReload(t *testing.T) {
	d := newDisk()
	s := newServer(t, Config{Exports: []*Export{row("a", d, "1")}}, d)
	opening, goOn := make(chan struct{}), make(chan struct{})
	slow := row("b", d, "1")
	open := slow.Open
	slow.Open = func(ctx context.Context, c Client) (*block.Device, error) {
		close(opening)
		<-goOn
		return open(ctx, c)
	}
	reloaded := make(chan error, 1)
	go func() { _, err := s.Reload(config(slow)); reloaded <- err }()
	<-opening
	down := make(chan error, 1)
	go func() { down <- s.Shutdown(testContext(t)) }()
	<-s.drain.Done()
	close(goOn)
	if err := wait(t, "Reload", reloaded); !errors.Is(err, ErrClosed) {
		t.Errorf("Reload: %v", err)
	}
	if err := wait(t, "Shutdown", down); err != nil {
		t.Errorf("Shutdown: %v", err)
	}
}

// A reload that hangs in opening a file keeps no shutdown from ending. What it opens in the
// end is closed again.
func TestShutdownStuckReload(t *testing.T) {
	d := newDisk()
	s := newServer(t, Config{Exports: []*Export{row("a", d, "1")}}, d)
	s.patience = time.Millisecond
	opening, goOn := make(chan struct{}), make(chan struct{})
	slow := row("b", d, "1")
	open := slow.Open
	slow.Open = func(ctx context.Context, c Client) (*block.Device, error) {
		close(opening)
		<-goOn
		return open(ctx, c)
	}
	reloaded := make(chan error, 1)
	go func() { _, err := s.Reload(config(slow)); reloaded <- err }()
	<-opening
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := s.Shutdown(ctx); !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "does not end") {
		t.Errorf("Shutdown while a reload hangs: %v", err)
	}
	close(goOn)
	if err := wait(t, "Reload", reloaded); !errors.Is(err, ErrClosed) {
		t.Errorf("Reload: %v", err)
	}
	// newServer's Shutdown finds everything settled, and closes what is left.
}

// Errors of closing are logged, and those of Shutdown returned.
func TestCloseErrors(t *testing.T) {
	d, own := newDisk(), newDisk()
	d.bad, own.bad = errors.New("cannot let go"), errors.New("cannot let go")
	var log logBuffer
	private := row("private", own, "")
	private.Private = true
	s, err := New(Config{Exports: []*Export{row("a", d, "1"), private}, Logger: log.logger()})
	if err != nil {
		t.Fatal(err)
	}
	connect(t, s, nil).use("private").leave()
	reloadTo(t, s, Report{Changed: []string{"a"}, Removed: []string{"private"}}, row("a", d, "2"))
	if err := s.Shutdown(testContext(t)); err == nil || !strings.Contains(err.Error(), `export "a": closing the device: cannot let go`) {
		t.Errorf("Shutdown: %v", err)
	}
	if l := log.lines("closing a device failed"); len(l) != 3 {
		t.Errorf("log: %q", l)
	}
}
