package server

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"testing"

	"nbd.example/nbd/handshake"
)

// scripted is a listener that hands out what it was given.
type scripted struct {
	results chan any // net.Conn or error
	closed  chan struct{}
}

func newScripted() *scripted { return &scripted{make(chan any), make(chan struct{})} }

func (l *scripted) Accept() (net.Conn, error) {
	select {
	case r := <-l.results:
		if err, ok := r.(error); ok {
			return nil, &net.OpError{Op: "accept", Err: os.NewSyscallError("accept4", err)}
		}
		return r.(net.Conn), nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *scripted) Close() error {
	select {
	case <-l.closed:
	default:
		close(l.closed)
	}
	return nil
}

func (l *scripted) Addr() net.Addr { return tcpAddr("127.0.0.1") }

// Errors that pass do not end the loop, and are logged once until it works.
func TestAcceptErrors(t *testing.T) {
	d := newDisk()
	var log logBuffer
	s := newServer(t, Config{Exports: []*Export{{Name: "a", Open: d.open}}, Logger: log.logger()}, d)
	l := newScripted()
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	dial := func() *peer {
		here, there := net.Pipe()
		t.Cleanup(func() { here.Close() })
		l.results <- there
		c, err := handshake.NewClient(testContext(t), here)
		if err != nil {
			t.Fatal(err)
		}
		return &peer{t: t, c: c, nc: here}
	}
	for range 2 {
		for _, err := range []error{syscall.EMFILE, syscall.ENFILE, syscall.ECONNABORTED, syscall.ENOMEM} {
			l.results <- err
		}
		dial().use("a").works()
	}
	if n := len(log.lines("cannot accept connections")); n != 2 {
		t.Errorf("%d lines in the log, want 2", n)
	}
	l.results <- io.ErrUnexpectedEOF
	if err := wait(t, "Serve", served); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("Serve: %v", err)
	}
	<-l.closed
	if err := s.Serve(l); !errors.Is(err, net.ErrClosed) {
		t.Errorf("Serve of a closed listener: %v", err)
	}
}

// While the loop waits after an error it hears of a shutdown.
func TestShutdownDuringBackoff(t *testing.T) {
	s := newServer(t, Config{})
	l := newScripted()
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	for range 8 {
		l.results <- syscall.EMFILE
	}
	if err := s.Shutdown(testContext(t)); err != nil {
		t.Error(err)
	}
	if err := wait(t, "Serve", served); err != nil {
		t.Errorf("Serve: %v", err)
	}
}

// A client that says nothing does not keep others from being served, and
// several listeners are served at once.
func TestListenersAreIndependent(t *testing.T) {
	d := newDisk()
	s := newServer(t, Config{Exports: []*Export{{Name: "a", Open: d.open}}}, d)
	for range 2 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		go s.Serve(l)
		silent, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { silent.Close() })
		nc, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		c, err := handshake.NewClient(testContext(t), nc)
		if err != nil {
			t.Fatal(err)
		}
		(&peer{t: t, c: c, nc: nc}).use("a").works()
	}
	ctx, cancel := context.WithCancel(testContext(t))
	cancel() // the silent ones are not worth waiting for
	s.Shutdown(ctx)
}
