package sock

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
		address = filepath.Join(t.TempDir(), "s")
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
	if file, err = ForKernel(conn); err != nil {
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
		err := With(file, func(fd int) (err error) {
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

// TestEnd: a server that does not read, since it has enough to do, sees at once that the
// kernel's connection is at its end, and whoever waits on the socket in the kernel sees it,
// too. So what the kernel sends on another connection is not undone by what was sent here.
func TestEnd(t *testing.T) {
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
			End([]*os.File{file}, hang)
			select {
			case err := <-received:
				if err == nil {
					t.Error("who waits on the socket received something")
				}
			case <-time.After(hang):
				t.Fatal("who waits on the socket is not told that it is dead")
			}
			if !HungUp(theirs) {
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

// TestEndKeepsAnswers: what a server has sent before it ended the connection still reaches
// the kernel.
func TestEndKeepsAnswers(t *testing.T) {
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
	eventually(t, "the server's end", func() bool { return HungUp(file) })
	killed := make(chan struct{})
	go func() {
		defer close(killed)
		End([]*os.File{file}, hang)
	}()
	eventually(t, "ours", func() (over bool) {
		err := With(theirs, func(fd int) error {
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

// TestEndTogether: all connections are ended before it is waited for anybody to read from one
// of them.
func TestEndTogether(t *testing.T) {
	var files, theirs []*os.File
	for range 3 {
		file, server := connected(t, "tcp")
		copied, err := copyFile(file)
		if err != nil {
			t.Fatal(err)
		}
		defer copied.Close()
		if _, err := server.Write(make([]byte, 4096)); err != nil {
			t.Fatal(err)
		}
		server.Close()
		eventually(t, "the server's end", func() bool { return HungUp(file) })
		files, theirs = append(files, file), append(theirs, copied)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		End(files, hang)
	}()
	for _, f := range []*os.File{theirs[2], theirs[1], theirs[0]} {
		eventually(t, "our end", func() (over bool) {
			With(f, func(fd int) error {
				events, err := hangUps(fd)
				over = events&unix.POLLHUP != 0
				return err
			})
			return over
		})
		if n, err := io.Copy(io.Discard, f); n != 4096 || err != nil {
			t.Errorf("%d bytes, %v", n, err)
		}
	}
	<-ended
}

// hang is longer than anything takes that works.
const hang = time.Minute

// copyFile duplicates a descriptor.
func copyFile(f *os.File) (copied *os.File, err error) {
	err = With(f, func(fd int) error {
		n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
		if err == nil {
			copied = os.NewFile(uintptr(n), f.Name())
		}
		return err
	})
	return copied, err
}

func eventually(t *testing.T, what string, so func() bool) {
	t.Helper()
	for until := time.Now().Add(hang); !so(); time.Sleep(time.Millisecond) {
		if time.Now().After(until) {
			t.Fatalf("waited for %s", what)
		}
	}
}
