package main

import (
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"testing"

	"nbd.example/nbd/backend/memory"
	"nbd.example/nbd/block"
	"nbd.example/nbd/transmission"
)

// TestPreInit attaches what begins with the requests: nothing is negotiated.
func TestPreInit(t *testing.T) {
	w := newWorld(t)
	b, err := memory.New(memory.Config{Size: 1 << 20})
	if err != nil {
		t.Fatal(err)
	}
	dev, err := block.New(b)
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	path := filepath.Join(w.dir, "bare")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	served := make(chan error, 1)
	go func() {
		conn, err := l.Accept()
		if err == nil {
			_, err = transmission.Serve(t.Context(), conn, &transmission.Session{Device: dev}, &transmission.Config{})
			conn.Close()
		}
		served <- err
	}()
	if status, out, errs := w.run("-u", path, "-preinit", "-size", "1M", "/dev/nbd1"); status != exitOK || out != "/dev/nbd1\n" {
		t.Fatalf("status %d, %q, %s", status, out, errs)
	}
	if a := w.device(1).Attached(); a == nil || a.Size != 1<<20 {
		t.Errorf("attached as %+v", a)
	}
	w.roundTrip(1, "bare")
	if status, _, errs := w.run("detach", "nbd1"); status != exitOK {
		t.Errorf("detach: status %d, %s", status, errs)
	}
	if err := <-served; err != nil {
		t.Error(err)
	}
}

// TestIPv6 attaches by an address of IPv6, in every way to write one.
func TestIPv6(t *testing.T) {
	w := newWorld(t)
	s := w.serve(map[string]int64{"disk": 1 << 20})
	l, err := net.Listen("tcp6", "[::1]:0")
	if err != nil {
		t.Skipf("no IPv6 here: %v", err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	port := fmt.Sprint(l.Addr().(*net.TCPAddr).Port)
	for _, line := range []string{"-n ::1 PORT /dev/nbd1 -N disk", "-n [::1]:PORT /dev/nbd1 -N disk", "-n nbd://[::1]:PORT/disk /dev/nbd1"} {
		p := w.start(strings.Fields(strings.ReplaceAll(line, "PORT", port))...)
		p.await("/dev/nbd1\n")
		w.roundTrip(1, line)
		if status, _, errs := w.run("detach", "nbd1"); status != exitOK {
			t.Errorf("%s: detach: status %d, %s", line, status, errs)
		}
		p.wait()
	}
	l.Close()
	<-served
}
