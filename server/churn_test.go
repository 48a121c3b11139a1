package server

import (
	"context"
	"errors"
	"flag"
	"net"
	"os"
	"runtime"
	"sync"
	"testing"
	"time"

	"nbd.example/nbd/handshake"
	"nbd.example/nbd/proto"
)

var long = flag.Bool("long", false, "run long tests in full length")

// openFiles counts the files of this process, or returns 0 where that cannot
// be known.
func openFiles() int {
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return 0
	}
	return len(all)
}

// settled waits until get has fallen to at most want; what connections leave
// behind goes away a moment after their peers know of the end.
func settled(t *testing.T, what string, want int, get func() int) {
	t.Helper()
	for deadline := time.Now().Add(limit); ; runtime.Gosched() {
		n := get()
		if n <= want {
			return
		}
		if time.Now().After(deadline) {
			t.Errorf("%s: %d, and %d before", what, n, want)
			return
		}
	}
}

// Connections of every kind come and go, and leave nothing.
func TestChurn(t *testing.T) {
	total := 10_000
	if *long {
		total = 100_000
	}
	shared, private := newDisk(), newDisk()
	private.closed = make(chan struct{}, total)
	own := row("private", private, "")
	own.Private = true
	s := newServer(t, config(row("a", shared, ""), own), shared, private)
	l, err := net.Listen("unix", t.TempDir()+"/socket")
	if err != nil {
		t.Skipf("no unix sockets here: %v", err)
	}
	go s.Serve(l)
	churn(t, l.Addr(), 100) // whatever is made once is there now
	goroutines, files := runtime.NumGoroutine(), openFiles()
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	churn(t, l.Addr(), total)
	settled(t, "goroutines", goroutines, runtime.NumGoroutine)
	settled(t, "open files", files, openFiles)
	settled(t, "private devices", 0, func() int { n, _ := private.counts(); return n })
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 8<<20 {
		t.Errorf("the heap has grown by %d bytes", grown)
	}
}

func churn(t *testing.T, addr net.Addr, total int) {
	var clients sync.WaitGroup
	const parallel = 8
	for k := range parallel {
		clients.Go(func() {
			for i := range total / parallel {
				if err := visit(addr, k+i); err != nil {
					t.Errorf("connection %d: %v", i, err)
					return
				}
			}
		})
	}
	clients.Wait()
}

// visit connects once, and leaves in one of several ways.
func visit(addr net.Addr, way int) error {
	nc, err := net.Dial(addr.Network(), addr.String())
	if err != nil {
		return err
	}
	defer nc.Close()
	if way%6 == 0 { // like a port scanner
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	c, err := handshake.NewClient(ctx, nc)
	if err != nil {
		return err
	}
	name := "a"
	if way%2 == 1 {
		name = "private"
	}
	switch way % 6 {
	case 1:
		_, err = c.Info(ctx, name)
		return errors.Join(err, c.Abort(ctx))
	case 2:
		_, err = c.Info(ctx, name)
		return err
	}
	if _, err = c.Go(ctx, name); err != nil {
		return err
	}
	if way%6 == 3 {
		return nil
	}
	_, err = nc.Write(proto.AppendRequest(nil, &proto.Request{Command: proto.CmdDisc}))
	if way%6 == 4 {
		nc.Read(make([]byte, 1)) // waits for the end
	}
	return err
}

// Thousands of clients at rest are normal. What one of them costs beyond the
// kernel is held here; both ends are in this process, so the client's is in it.
func TestIdleConnections(t *testing.T) {
	if testing.Short() {
		t.Skip("short: needs thousands of connections")
	}
	n := 1000
	if *long {
		n = 5000
	}
	d := newDisk()
	s := newServer(t, config(row("a", d, "")), d)
	l, err := net.Listen("unix", t.TempDir()+"/socket")
	if err != nil {
		t.Skipf("no unix sockets here: %v", err)
	}
	go s.Serve(l)
	conns := idle(t, l.Addr(), n/10) // pools and the like
	runtime.GC()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	conns = append(conns, idle(t, l.Addr(), n)...)
	runtime.GC()
	runtime.ReadMemStats(&after)
	each := int(after.HeapInuse+after.StackInuse-before.HeapInuse-before.StackInuse) / n
	t.Logf("%d bytes for each connection at rest", each)
	if each > 20<<10 {
		t.Errorf("%d bytes for each connection at rest, over 20 KiB", each)
	}
	for _, nc := range conns {
		nc.Close()
	}
}

// idle makes connections that rest in the transmission phase.
func idle(t *testing.T, addr net.Addr, n int) []net.Conn {
	t.Helper()
	conns := make([]net.Conn, n)
	ctx := testContext(t)
	for i := range conns {
		nc, err := net.Dial(addr.Network(), addr.String())
		if err != nil {
			t.Fatal(err)
		}
		c, err := handshake.NewClient(ctx, nc)
		if err != nil {
			t.Fatal(err)
		}
		a, err := c.Go(ctx, "a")
		if err != nil {
			t.Fatal(err)
		}
		conns[i] = a.Conn
		// One answered request shows that the server is in that phase.
		if _, err := nc.Write(proto.AppendRequest(nil, &proto.Request{Command: proto.CmdRead, Length: 4})); err != nil {
			t.Fatal(err)
		}
		if _, err := nc.Read(make([]byte, 64)); err != nil {
			t.Fatal(err)
		}
	}
	return conns
}

// BenchmarkConnect is a whole visit: connect, one GO, disconnect.
func BenchmarkConnect(b *testing.B) {
	d := newDisk()
	s := newServer(b, config(row("a", d, "")), d)
	l, err := net.Listen("unix", b.TempDir()+"/socket")
	if err != nil {
		b.Skipf("no unix sockets here: %v", err)
	}
	go s.Serve(l)
	b.ReportAllocs()
	for b.Loop() {
		if err := visit(l.Addr(), 4); err != nil {
			b.Fatal(err)
		}
	}
}
