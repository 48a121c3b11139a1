package pass

import (
	"bytes"
	"net"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// TestSendLong sends a line for which the socket has no room at once: all of it arrives, with
// the sockets.
func TestSendLong(t *testing.T) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var ends [2]*net.UnixConn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "end")
		c, err := net.FileConn(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		ends[i] = c.(*net.UnixConn)
	}
	if err := ends[0].SetWriteBuffer(1); err != nil {
		t.Fatal(err)
	}
	line := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	sent := make(chan error, 1)
	go func() {
		sent <- Send(ends[0], line, []Socket{{Name: "nbd0-1", File: os.Stderr}})
		ends[0].Close()
	}()
	var got []byte
	sockets := 0
	for b := make([]byte, 1<<16); ; {
		n, files, err := Receive(ends[1], b)
		for _, f := range files {
			f.Close()
			sockets++
		}
		got = append(got, b[:n]...)
		if n == 0 || err != nil {
			break
		}
	}
	if err := <-sent; err != nil || !bytes.Equal(got, line) || sockets != 1 {
		t.Errorf("%v; %d bytes of %d, %d sockets", err, len(got), len(line), sockets)
	}
}
