package client_test

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"testing"

	"nbd.example/nbd/backend/memory"
	"nbd.example/nbd/block"
	"nbd.example/nbd/block/blocktest"
	"nbd.example/nbd/client"
	"nbd.example/nbd/handshake"
	"nbd.example/nbd/proto"
	"nbd.example/nbd/transmission"
)

// TestConformanceOverOwnServer runs the suite of back ends over this module's
// own server, the only one here that knows extended headers.
func TestConformanceOverOwnServer(t *testing.T) {
	for name, cfg := range map[string]client.Config{
		"extended": {}, "structured": {NoExtended: true}, "simple": {NoExtended: true, NoStructured: true},
	} {
		t.Run(name, func(t *testing.T) {
			blocktest.Run(t, blocktest.Target{
				SizeUnit: 512,
				Open: func(t testing.TB, size int64) (block.Backend, error) {
					uri, stop := ownServer(t, size)
					c, err := client.Dial(t.Context(), uri, &cfg)
					if err == nil && (c.Extended() != !cfg.NoExtended || c.Structured() && cfg.NoStructured) {
						err = fmt.Errorf("extended %v, structured %v", c.Extended(), c.Structured())
					}
					return served{c, stop}, err
				},
			})
		})
	}
}

// ownServer serves memory to one connection.
func ownServer(t testing.TB, size int64) (uri string, stop func()) {
	t.Helper()
	m, err := memory.New(memory.Config{Size: size})
	if err != nil {
		t.Fatal(err)
	}
	dev, err := block.New(m)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(tempDir(t), "s"))
	if err != nil {
		t.Fatal(err)
	}
	s := &handshake.Server{Open: func(context.Context, handshake.Peer, string) (*handshake.Export, error) {
		return &handshake.Export{Size: uint64(size), Flags: allFlags &^ proto.FlagSendFastZero, Contexts: []string{proto.ContextBaseAllocation}}, nil
	}}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer dev.Close()
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		r, err := s.Negotiate(context.Background(), c)
		if err != nil {
			t.Errorf("server's handshake: %v", err)
			return
		}
		_, err = transmission.Serve(context.Background(), r.Conn, &transmission.Session{
			Device: dev, Flags: r.Flags, Structured: r.Structured, Extended: r.Extended, Contexts: r.Contexts, Early: r.Early,
		}, &transmission.Config{})
		if err != nil {
			t.Errorf("server's transmission: %v", err)
		}
	}()
	stop = func() { l.Close(); <-done }
	t.Cleanup(stop)
	return "nbd+unix:///?socket=" + l.Addr().String(), stop
}
