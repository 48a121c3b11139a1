package vsocket

import (
	"context"
	"errors"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"nbd.example/nbd/internal/testgate"
)

// loopback needs a kernel that connects a machine to itself by vsock: the module
// vsock_loopback must be there.
func loopback() testgate.Need {
	return testgate.Own("vsock", func() string {
		if _, err := os.Stat("/sys/module/vsock_loopback"); err != nil {
			return "needs vsock to this machine itself (modprobe vsock_loopback)"
		}
		return ""
	})
}

// device needs the family of sockets.
func device() testgate.Need {
	return testgate.Own("vsock", func() string {
		if _, err := os.Stat("/dev/vsock"); err != nil {
			return "needs vsock: " + err.Error()
		}
		return ""
	})
}

// TestListen needs no more than the family of sockets.
func TestListen(t *testing.T) {
	testgate.Requires(t, device())
	l, err := Listen(Addr{Context: Any})
	if err != nil {
		t.Fatal(err)
	}
	a := l.Addr().(Addr)
	if a.Port == 0 || !strings.HasPrefix(a.String(), "vsock:*:") {
		t.Errorf("listens on %v", a)
	}
	if _, err := Listen(a); err == nil || !strings.Contains(err.Error(), "address already in use") {
		t.Errorf("listening twice: %v", err)
	}
	done := make(chan error, 1)
	go func() {
		_, err := l.Accept()
		done <- err
	}()
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	select {
	case err := <-done:
		if err == nil {
			t.Error("Accept succeeded on a closed listener")
		}
	case <-time.After(time.Minute):
		t.Error("Accept does not come back from a closed listener")
	}
}

// TestFileListener takes a listening socket as a service manager passes it.
func TestFileListener(t *testing.T) {
	testgate.Requires(t, device())
	fd, err := unix.Socket(unix.AF_VSOCK, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "vsock")
	defer f.Close()
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrVM{CID: Any, Port: unix.VMADDR_PORT_ANY}), unix.Listen(fd, 1)); err != nil {
		t.Fatal(err)
	}
	l, err := FileListener(f)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if a, ok := l.Addr().(Addr); !ok || a.Port == 0 || !strings.HasPrefix(a.String(), "vsock:*:") {
		t.Errorf("listens on %v", l.Addr())
	}
	other, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if _, err := FileListener(other); err == nil {
		t.Error("what is no socket was taken for one")
	}
}

func TestLoopback(t *testing.T) {
	testgate.Requires(t, loopback())
	l, err := Listen(Addr{Context: Any})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		c, err := l.Accept()
		if err == nil {
			io.Copy(c, c)
			c.Close()
		}
	}()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c, err := Dial(ctx, Addr{1, l.Addr().(Addr).Port})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if a, ok := c.RemoteAddr().(Addr); !ok || a.CID() != 1 {
		t.Errorf("connected to %v", c.RemoteAddr())
	}
	b := make([]byte, 5)
	if _, err := c.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, b); err != nil || string(b) != "hello" {
		t.Errorf("%q, %v", b, err)
	}
	if err := c.SetReadDeadline(time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Read(b); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a read past its deadline: %v", err)
	}
}
