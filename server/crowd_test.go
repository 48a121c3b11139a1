package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"testing"
)

// machine is an address by vsock.
type machine uint32

func (m machine) Network() string { return "vsock" }
func (m machine) String() string  { return fmt.Sprint("vsock:", uint32(m), ":1") }
func (m machine) CID() uint32     { return uint32(m) }

// TestMaxPerClient: the limit is for each address, whatever the ports.
func TestMaxPerClient(t *testing.T) {
	log := &logBuffer{}
	s := newServer(t, Config{MaxPerClient: 2, Logger: log.logger()})
	// begin connects, and returns what ends the connection, or nil if it was refused.
	begin := func(addr net.Addr) (end func()) {
		here, there := net.Pipe()
		done := make(chan error, 1)
		go func() { done <- s.ServeConn(context.Background(), from{there, addr}) }()
		if _, err := here.Read(make([]byte, 1)); err != nil {
			here.Close()
			if err := wait(t, "the end of a refused connection", done); !errors.Is(err, ErrCrowded) {
				t.Errorf("%v: %v", addr, err)
			}
			return nil
		}
		return func() {
			here.Close()
			wait(t, "the end of a connection", done)
		}
	}
	tcp := func(ip string, port int) net.Addr { return &net.TCPAddr{IP: net.ParseIP(ip), Port: port} }
	var ends []func()
	for _, c := range []struct {
		addr net.Addr
		in   bool
	}{
		{tcp("10.0.0.1", 1), true}, {tcp("::ffff:10.0.0.1", 2), true}, {tcp("10.0.0.1", 3), false}, {tcp("10.0.0.1", 4), false},
		{tcp("10.0.0.2", 1), true}, {tcp("::1", 1), true}, {tcp("::1", 2), true}, {tcp("::1", 3), false},
		{machine(3), true}, {machine(3), true}, {machine(3), false}, {machine(4), true},
		{&net.UnixAddr{}, true}, {&net.UnixAddr{}, true}, {&net.UnixAddr{}, true}, {nil, true}, {nil, true}, {nil, true},
	} {
		end := begin(c.addr)
		if (end != nil) != c.in {
			t.Errorf("%v: let in: %t, want %t", c.addr, end != nil, c.in)
		}
		if end != nil {
			ends = append(ends, end)
		}
	}
	if l := log.lines("too many connections from one address"); len(l) != 3 {
		t.Errorf("log: %q, want a line for each address with too many", l)
	}
	ends[0]()
	if end := begin(tcp("10.0.0.1", 5)); end == nil {
		t.Error("there is room again, and nobody is let in")
	} else {
		end()
	}
	for _, end := range ends[1:] {
		end()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.origins) != 0 || s.crowd.n != 0 {
		t.Errorf("of the clients that have left remain %v, and %d connections", s.origins, s.crowd.n)
	}
}
