package kernel_test

import (
	"net"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"nbd.example/nbd/kernel"
)

func TestCheckSockets(t *testing.T) {
	socket := func(domain, kind, protocol int) *os.File {
		fd, err := unix.Socket(domain, kind|unix.SOCK_CLOEXEC, protocol)
		if err != nil {
			return nil // not on this machine
		}
		f := os.NewFile(uintptr(fd), "socket")
		t.Cleanup(func() { f.Close() })
		return f
	}
	for want, f := range map[string]*os.File{
		"not connected":      socket(unix.AF_UNIX, unix.SOCK_STREAM, 0),
		"only TCP and unix ": socket(unix.AF_UNIX, unix.SOCK_DGRAM, 0),
		"multipath":          socket(unix.AF_INET, unix.SOCK_STREAM, unix.IPPROTO_MPTCP),
		"nil":                nil,
		"not a socket":       open(t, os.DevNull),
	} {
		if f == nil && want != "nil" {
			continue
		}
		if err := kernel.CheckSockets([]*os.File{f}); err == nil || !strings.Contains(strings.ReplaceAll(err.Error(), "socket operation on non-socket", "not a socket"), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Skip(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	f, err := c.(*net.TCPConn).File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := kernel.CheckSockets([]*os.File{f}); err != nil {
		t.Errorf("a TCP connection: %v", err)
	}
}

func open(t *testing.T, name string) *os.File {
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}
