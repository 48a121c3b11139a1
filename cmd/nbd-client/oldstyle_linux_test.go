package main

import (
	"context"
	"net"
	"strconv"
	"strings"
	"sync"
	"testing"

	"nbd.example/nbd/backend/memory"
	"nbd.example/nbd/block"
	"nbd.example/nbd/server"
)

// serveOldstyle serves a disk to antique clients, and returns the port.
func (w *world) serveOldstyle(size int64) string {
	w.t.Helper()
	s, err := server.New(server.Config{Exports: []*server.Export{{
		Open: func(context.Context, server.Client) (*block.Device, error) {
			b, err := memory.New(memory.Config{Size: size})
			if err != nil {
				return nil, err
			}
			return block.New(b)
		},
	}}})
	if err != nil {
		w.t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		w.t.Fatal(err)
	}
	var serving sync.WaitGroup
	serving.Go(func() { s.ServeOldstyle(l, "") })
	w.t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel() // cut what is left
		s.Shutdown(ctx)
		serving.Wait()
	})
	return strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
}

// TestOldstyle attaches as the first documentation has it: nbd-client server 1234 /dev/nb0.
func TestOldstyle(t *testing.T) {
	w := newWorld(t)
	port := w.serveOldstyle(3 << 20)
	p := w.start("-n", "127.0.0.1", port, "/dev/nb0")
	p.await("/dev/nbd0\n")
	if a := w.device(0).Attached(); a == nil || a.Size != 3<<20 {
		t.Errorf("attached as %+v", a)
	}
	w.roundTrip(0, "antique")
	if status, _, errs := w.run("detach", "nbd0"); status != exitOK {
		t.Errorf("detach: status %d: %s", status, errs)
	}
	p.wait()
	for _, more := range []string{"--no-supervise", "--no-supervise -no-optgo"} {
		line := append([]string{"127.0.0.1", port, "/dev/nb1"}, strings.Fields(more)...)
		if status, out, errs := w.run(line...); status != exitOK || out != "/dev/nbd1\n" {
			t.Fatalf("%q: status %d, %q, %s", line, status, out, errs)
		}
		w.roundTrip(1, more)
		w.run("detach", "nbd1")
	}
	for _, line := range []string{"-n 127.0.0.1 PORT nbd0 -N disk", "-n 127.0.0.1 PORT nbd0 -x", "127.0.0.1 PORT nbd0 --no-supervise -N disk"} {
		status, _, errs := w.run(strings.Fields(strings.Replace(line, "PORT", port, 1))...)
		if status != exitError || !strings.Contains(errs, "it knows neither names of exports nor TLS; leave -N") {
			t.Errorf("%s: status %d, %s", line, status, errs)
		}
	}
}
