package transmission

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"nbd.example/nbd/backend/file"
	"nbd.example/nbd/block"
	"nbd.example/nbd/internal/testgate"
	"nbd.example/nbd/proto"
)

// mappedDisk is a file of 4 MiB on tmpfs, served with the parameter map.
func mappedDisk(t *testing.T) (path string, contents []byte, dev *block.Device) {
	t.Helper()
	contents = make([]byte, 4<<20)
	rng := rand.NewChaCha8([32]byte{1})
	rng.Read(contents)
	path = filepath.Join(testgate.MemoryDir(t), "disk")
	if err := os.WriteFile(path, contents, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := file.Open(file.Config{Path: path, Map: true})
	if err != nil {
		t.Fatal(err)
	}
	if dev, err = block.New(f); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dev.Close() })
	return path, contents, dev
}

// serveTCP serves dev to the connection that it returns. The error of Serve
// comes by the channel.
func serveTCP(t *testing.T, dev *block.Device) (net.Conn, <-chan error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	here, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	there, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	end, gone := make(chan error, 1), make(chan struct{})
	go func() {
		defer close(gone)
		defer there.Close()
		_, err := Serve(context.Background(), there, &Session{Device: dev, Flags: proto.FlagHasFlags}, nil)
		end <- err
	}()
	t.Cleanup(func() { // before the device is closed
		here.Close()
		<-gone
	})
	return here, end
}

// readBlocks reads blocks of 4 KiB at random places, 32 at a time, and compares.
// It returns the error with which the connection broke.
func readBlocks(t *testing.T, c net.Conn, contents []byte, rounds int) error {
	t.Helper()
	const depth, size = 32, 4096
	places := make([]int, depth)
	got := make([]byte, proto.SimpleReplySize+size)
	for round := range rounds {
		var out []byte
		for i := range places {
			places[i] = rand.IntN(len(contents)/size) * size
			out = proto.AppendRequest(out, &proto.Request{Cookie: uint64(i), Offset: uint64(places[i]), Length: size})
		}
		if _, err := c.Write(out); err != nil {
			return err
		}
		for range depth {
			if _, err := readFull(c, got[:proto.SimpleReplySize]); err != nil {
				return err
			}
			var r proto.SimpleReply
			if !proto.ParseSimpleReply(got, &r) {
				t.Fatalf("round %d: not a reply: %x", round, got[:16])
			}
			if r.Error != proto.OK {
				return r.Error
			}
			if _, err := readFull(c, got[16:]); err != nil {
				return err
			}
			if at := places[r.Cookie]; !bytes.Equal(got[16:], contents[at:at+size]) {
				t.Fatalf("round %d: wrong bytes at %d", round, at)
			}
		}
	}
	return nil
}

func readFull(c net.Conn, p []byte) (n int, err error) {
	for n < len(p) && err == nil {
		var k int
		k, err = c.Read(p[n:])
		n += k
	}
	return n, err
}

// TestMapped reads until the windows are hot, and on.
func TestMapped(t *testing.T) {
	_, contents, dev := mappedDisk(t)
	c, _ := serveTCP(t, dev)
	if err := readBlocks(t, c, contents, 100); err != nil {
		t.Fatal(err)
	}
	if _, hot := dev.Mapped(0, 4096); !hot {
		t.Error("3,200 reads of two windows did not make them hot")
	}
	if err := readBlocks(t, c, contents, 100); err != nil {
		t.Fatal(err)
	}
	// What was trimmed is no longer taken from the mapping.
	if err := dev.Trim(t.Context(), 0, 1<<20, 0); err != nil {
		t.Fatal(err)
	}
	if _, hot := dev.Mapped(0, 4096); hot {
		t.Error("a window with a hole is still hot")
	}
}

// TestMappedTruncated cuts the file off below hot windows: that must not end the
// process, but one connection, and the next one gets the error.
func TestMappedTruncated(t *testing.T) {
	path, contents, dev := mappedDisk(t)
	c, end := serveTCP(t, dev)
	if err := readBlocks(t, c, contents, 100); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 0); err != nil {
		t.Fatal(err)
	}
	var errno proto.Errno
	if err := readBlocks(t, c, contents, 1); err == nil || errors.As(err, &errno) {
		t.Fatalf("reads from a file that is gone: %v; the connection should have ended", err)
	}
	if err := <-end; !errors.Is(err, errSpan) {
		t.Errorf("Serve returned %v", err)
	}
	c, _ = serveTCP(t, dev)
	if err := readBlocks(t, c, contents, 1); !errors.As(err, &errno) || errno != proto.EIO {
		t.Errorf("the second attempt: %v, not %v", err, proto.EIO)
	}
}

// TestMappedCold drops the file from the page cache first: what is cold must not
// be taken from the mapping, where a page that is not there makes the socket wait.
func TestMappedCold(t *testing.T) {
	path := filepath.Join(testgate.DiskDir(t), "disk")
	contents := bytes.Repeat([]byte("cold"), 1<<20)
	if err := os.WriteFile(path, contents, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := file.Open(file.Config{Path: path, Map: true})
	if err != nil {
		t.Fatal(err)
	}
	dev, err := block.New(f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dev.Close() })
	forget(t, path, dev)
	for i := range 2000 {
		if _, hot := dev.Mapped(int64(i%8)*4096, 4096); hot {
			t.Fatalf("read %d of a window that is not in memory is offered from the mapping", i)
		}
	}
	c, _ := serveTCP(t, dev)
	if err := readBlocks(t, c, contents, 50); err != nil {
		t.Fatal(err)
	}
}

// forget takes the file out of the page cache.
func forget(t *testing.T, path string, dev *block.Device) {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	for range 10 {
		// Pages that are on their way stay. After reading them none are.
		if err := dev.ReadAt(t.Context(), make([]byte, dev.Size()), 0); err != nil {
			t.Fatal(err)
		}
		if err := unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED); err != nil {
			t.Fatal(err)
		}
		left := false
		for off := int64(0); off < dev.Size(); off += 4096 {
			_, in := dev.Range(off, 4096, false)
			left = left || in
		}
		if !left {
			return
		}
	}
	t.Fatal("the system does not take the file out of memory")
}
