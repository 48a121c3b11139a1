package client_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"path/filepath"
	"slices"
	"testing"

	"nbd.example/nbd/backend/memory"
	"nbd.example/nbd/backend/null"
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
					m, err := memory.New(memory.Config{Size: size})
					if err != nil {
						return nil, err
					}
					uri, stop := ownServer(t, m)
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

// TestHuge has effects as long as the largest export that there can be, with extended
// headers. proto.md, "Terminology", "effect length".
func TestHuge(t *testing.T) {
	const size = math.MaxInt64
	disk, err := null.New(null.Config{Size: size})
	if err != nil {
		t.Fatal(err)
	}
	uri, stop := ownServer(t, disk)
	defer stop()
	c := dial(t, uri, nil)
	defer c.Close()
	if c.Size() != size || !c.Extended() {
		t.Fatalf("%d bytes, extended: %t", c.Size(), c.Extended())
	}
	ctx := t.Context()
	for _, off := range []int64{0, 1, 1 << 62, size - 1} {
		n := size - off
		if err := c.Trim(ctx, off, n, block.FUA); err != nil {
			t.Errorf("trimming %d bytes at %d: %v", n, off, err)
		}
		for _, f := range []block.Flags{0, block.NoHole, block.FUA} {
			if err := c.WriteZeroes(ctx, off, n, f); err != nil {
				t.Errorf("zeroing %d bytes at %d, flags %d: %v", n, off, f, err)
			}
		}
		if err := c.Cache(ctx, off, n); err != nil {
			t.Errorf("caching %d bytes at %d: %v", n, off, err)
		}
		status, err := c.BlockStatus(ctx, off, n, false)
		want := []proto.Extent{{Length: uint64(n), Status: uint64(proto.StateHole | proto.StateZero)}}
		if len(status) != 1 || err != nil {
			t.Errorf("the status of %d bytes at %d: %v, %v", n, off, status, err)
		}
		for _, got := range status {
			if !slices.Equal(got, want) {
				t.Errorf("the status of %d bytes at %d: %+v, want %+v", n, off, got, want)
			}
		}
		// One byte more is refused by the server, not only by the client.
		for _, cmd := range []proto.Command{proto.CmdTrim, proto.CmdWriteZeroes, proto.CmdCache, proto.CmdBlockStatus} {
			call := transmission.Call{Command: cmd, Offset: uint64(off), Length: uint64(n) + 1, Status: func(uint32, []proto.Extent) {}}
			if err := c.Demux().Do(ctx, &call); !errors.As(err, new(*transmission.RequestError)) {
				t.Errorf("%v of %d bytes at %d: %v", cmd, uint64(n)+1, off, err)
			}
		}
	}
}

// ownServer serves a disk to one connection.
func ownServer(t testing.TB, disk block.Backend) (uri string, stop func()) {
	t.Helper()
	dev, err := block.New(disk)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(tempDir(t), "s"))
	if err != nil {
		t.Fatal(err)
	}
	s := &handshake.Server{Open: func(context.Context, handshake.Peer, string) (*handshake.Export, error) {
		return &handshake.Export{Size: uint64(dev.Size()), Flags: allFlags &^ proto.FlagSendFastZero, Contexts: []string{proto.ContextBaseAllocation}}, nil
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
