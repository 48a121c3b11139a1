package main

import (
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"nbd.example/nbd/backend/memory"
	"nbd.example/nbd/block"
	"nbd.example/nbd/transmission"
)

// bare serves once what begins with the requests: nothing is negotiated. It returns the
// socket, and what comes of serving.
func (w *world) bare(size int64) (path string, served <-chan error) {
	t := w.t
	t.Helper()
	b, err := memory.New(memory.Config{Size: size})
	if err != nil {
		t.Fatal(err)
	}
	dev, err := block.New(b)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dev.Close() })
	path = filepath.Join(w.dir, "bare")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	done := make(chan error, 1)
	go func() {
		conn, err := l.Accept()
		if err == nil {
			_, err = transmission.Serve(t.Context(), conn, &transmission.Session{Device: dev}, &transmission.Config{})
			conn.Close()
		}
		done <- err
	}()
	return path, done
}

// TestPreInit attaches without negotiation.
func TestPreInit(t *testing.T) {
	w := newWorld(t)
	path, served := w.bare(1 << 20)
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

// TestPreInitReadOnly: what is not negotiated can be read-only all the same.
func TestPreInitReadOnly(t *testing.T) {
	w := newWorld(t)
	path, _ := w.bare(1 << 20)
	if status, _, errs := w.run("-P", "-B", "1M", "-R", "-u", path, "/dev/nbd1"); status != exitOK {
		t.Fatalf("status %d, %s", status, errs)
	}
	if _, err := w.device(1).WriteAt(make([]byte, 512), 0); !errors.Is(err, syscall.EPERM) {
		t.Errorf("writing gives %v", err)
	}
	w.run("detach", "nbd1")
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
