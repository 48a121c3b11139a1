package server

import (
	"context"
	"errors"
	"io"
	"net"
	"testing"

	"nbd.example/nbd/client"
	"nbd.example/nbd/handshake"
)

// TestServeOldstyle serves antique clients on a listener of their own, beside
// others, and the export that a reload has put under the name.
func TestServeOldstyle(t *testing.T) {
	d, e := newDisk(), newDisk()
	s := newServer(t, Config{Exports: []*Export{{Name: "disk", Open: d.open}}}, d, e)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.ServeOldstyle(l, "disk") }()
	dial := func(cfg *client.Config) (*client.Conn, error) {
		return client.Dial(testContext(t), "nbd://"+l.Addr().String(), cfg)
	}
	if _, err := dial(nil); err == nil {
		t.Error("a client that does not allow oldstyle was content with it")
	}
	c, err := dial(&client.Config{Oldstyle: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.WriteAt(testContext(t), []byte("hello"), 512, 0); err == nil {
		t.Error("an unaligned write passed the client's own check")
	}
	if err := c.WriteAt(testContext(t), make([]byte, 512), 512, 0); err != nil {
		t.Error(err)
	}
	if err := c.ReadAt(testContext(t), make([]byte, 4096), 0); err != nil || c.Size() != 1<<20 || c.Structured() {
		t.Errorf("%d bytes, structured %v, %v", c.Size(), c.Structured(), err)
	}
	connect(t, s, nil).use("disk").leave() // newstyle, beside it
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if _, err := s.Reload(Config{Exports: []*Export{{Name: "other", Open: e.open}}}); err != nil {
		t.Fatal(err)
	}
	if _, err := dial(&client.Config{Oldstyle: true}); !errors.Is(err, handshake.ErrHungUp) {
		t.Errorf("an export that is gone: %v, want ErrHungUp", err)
	}
	if err := s.Shutdown(testContext(t)); err != nil {
		t.Error(err)
	}
	if err := wait(t, "ServeOldstyle", served); err != nil {
		t.Error(err)
	}
}

// TestServeOldstyleConn: one connection, and the barriers of an export.
func TestServeOldstyleConn(t *testing.T) {
	d := newDisk()
	s := newServer(t, Config{Exports: []*Export{
		{Name: "disk", Open: d.open},
		{Name: "nobody", Open: d.open, Allow: &Rules{}},
	}}, d)
	for name, want := range map[string]error{"disk": nil, "nobody": handshake.ErrUnknown, "nothing": handshake.ErrUnknown} {
		here, there := net.Pipe()
		end := make(chan error, 1)
		go func() {
			end <- s.ServeOldstyleConn(context.Background(), from{there, tcpAddr("10.0.0.1")}, name)
		}()
		c, err := client.New(testContext(t), here, &client.Config{Oldstyle: true})
		if (err == nil) != (want == nil) {
			t.Errorf("%s: %v", name, err)
		}
		if err == nil {
			if err := c.Close(); err != nil && !errors.Is(err, io.EOF) {
				t.Error(err)
			}
		}
		if err := wait(t, "the end", end); !errors.Is(err, want) {
			t.Errorf("%s: ended with %v, want %v", name, err, want)
		}
	}
}
