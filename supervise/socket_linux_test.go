package supervise

import (
	"io"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// connected returns the kernel's end of a connection, and the server's.
func connected(t *testing.T, network string) (file *os.File, server net.Conn) {
	t.Helper()
	address := "127.0.0.1:0"
	if network == "unix" {
		address = filepath.Join(tempDir(t), "s")
	}
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	conn, err := net.Dial(network, l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if server, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	if file, err = forKernel(conn); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close(); server.Close() })
	return file, server
}

// fill sends until the peer, which does not read, takes no more, and returns how much that
// was.
func fill(t *testing.T, file *os.File) (sent int) {
	t.Helper()
	b := make([]byte, 64<<10)
	for {
		var n int
		err := withFD(file, func(fd int) (err error) {
			n, err = unix.SendmsgN(fd, b, nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
			return err
		})
		switch err {
		case nil:
			sent += n
		case unix.EAGAIN:
			return sent
		case unix.EINTR:
		default:
			t.Fatal(err)
		}
	}
}

// TestKill: a server that does not read, since it has enough to do, sees at once that the
// kernel's connection is at its end, and whoever waits on the socket in the kernel sees it,
// too. So what the kernel sends on another connection is not undone by what was sent here.
func TestKill(t *testing.T) {
	for _, network := range []string{"unix", "tcp"} {
		t.Run(network, func(t *testing.T) {
			file, server := connected(t, network)
			theirs, err := copyFile(file) // as the driver has one
			if err != nil {
				t.Fatal(err)
			}
			defer theirs.Close()
			received := make(chan error, 1)
			go func() {
				_, err := theirs.Read(make([]byte, 1))
				received <- err
			}()
			sent := fill(t, file)
			kill(file, hang)
			select {
			case err := <-received:
				if err == nil {
					t.Error("who waits on the socket received something")
				}
			case <-time.After(hang):
				t.Fatal("who waits on the socket is not told that it is dead")
			}
			if !hungUp(theirs) {
				t.Error("a socket that was shut down does not look so")
			}
			raw, err := server.(interface {
				SyscallConn() (syscall.RawConn, error)
			}).SyscallConn()
			if err != nil {
				t.Fatal(err)
			}
			raw.Control(func(fd uintptr) {
				p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
				n, err := unix.Poll(p, int(hang.Milliseconds()))
				for err == unix.EINTR {
					n, err = unix.Poll(p, int(hang.Milliseconds()))
				}
				if n == 0 || err != nil {
					t.Errorf("a server that does not read is not told of the end: %d, %v", n, err)
				}
			})
			if got, err := io.Copy(io.Discard, server); network == "tcp" && got >= int64(sent) {
				t.Errorf("all %d bytes arrived, %v", got, err)
			}
		})
	}
}

// TestKillKeepsAnswers: what a server has sent before it ended the connection still reaches
// the kernel.
func TestKillKeepsAnswers(t *testing.T) {
	file, server := connected(t, "tcp")
	theirs, err := copyFile(file)
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Close()
	const sent = 32 << 10
	if _, err := server.Write(make([]byte, sent)); err != nil {
		t.Fatal(err)
	}
	server.Close()
	eventually(t, "the server's end", func() bool { return hungUp(file) })
	killed := make(chan struct{})
	go func() {
		defer close(killed)
		kill(file, hang)
	}()
	eventually(t, "ours", func() (over bool) {
		err := withFD(theirs, func(fd int) error {
			events, err := hangUps(fd)
			over = events&unix.POLLHUP != 0
			return err
		})
		return over || err != nil
	})
	if got, err := io.Copy(io.Discard, theirs); got != sent {
		t.Errorf("of %d bytes of answers the kernel can read %d: %v", sent, got, err)
	}
	<-killed
}
