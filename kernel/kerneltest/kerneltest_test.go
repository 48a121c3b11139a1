package kerneltest_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"nbd.example/nbd/kernel"
	"nbd.example/nbd/kernel/kerneltest"
	"nbd.example/nbd/proto"
)

func TestIO(t *testing.T) {
	r := attach(t, 1, kernel.Attach{Size: 1<<20 + 700, BlockSize: 1024, Identifier: "disk"})
	r.p.memory = make([]byte, 2<<20)
	info, err := r.d.Info(r.i)
	if err != nil {
		t.Fatal(err)
	}
	if info.Size != 1<<20+512 || info.BlockSize != 1024 || info.PID != os.Getpid() || info.Identifier != "disk" || info.ReadOnly {
		t.Errorf("info %+v", info)
	}
	data := bytes.Repeat([]byte("0123456789abcdef"), 256)
	if n, err := r.dev.WriteAt(data, 8192); n != len(data) || err != nil {
		t.Fatal(n, err)
	}
	got := make([]byte, len(data))
	if n, err := r.dev.ReadAt(got, 8192); n != len(data) || err != nil || !bytes.Equal(got, data) {
		t.Fatal(n, err)
	}
	if err := errors.Join(r.dev.WriteFUA(data, 0), r.dev.Flush(), r.dev.Trim(0, 4096), r.dev.Zero(4096, 1024)); err != nil {
		t.Fatal(err)
	}
	want := []proto.Request{
		{Command: proto.CmdWrite, Offset: 8192, Length: 4096},
		{Command: proto.CmdRead, Offset: 8192, Length: 4096},
		{Command: proto.CmdWrite, Flags: proto.CmdFlagFUA, Offset: 0, Length: 4096},
		{Command: proto.CmdFlush},
		{Command: proto.CmdTrim, Offset: 0, Length: 4096},
		{Command: proto.CmdWriteZeroes, Offset: 4096, Length: 1024},
	}
	if log := r.p.requests(); !slices.Equal(log, want) {
		t.Errorf("the server was asked\n%+v\nwant\n%+v", log, want)
	}
	if _, err := r.dev.ReadAt(got[:100], 0); err != syscall.EINVAL {
		t.Errorf("reading part of a block: %v", err)
	}
	if n, err := r.dev.ReadAt(got[:2048], 1<<20); n != 512 || err != io.EOF {
		t.Errorf("reading beyond the end: %d, %v", n, err)
	}
	if n, err := r.dev.WriteAt(got[:2048], 1<<20); n != 512 || err != syscall.ENOSPC {
		t.Errorf("writing beyond the end: %d, %v", n, err)
	}
	if err := r.dev.Trim(0, 2<<20); err != syscall.ENOSPC {
		t.Errorf("discarding beyond the end: %v", err)
	}
}

// TestTCP attaches by a TCP connection, which must be a stream.
func TestTCP(t *testing.T) {
	k, p := newKernel(t), newPeer(t, 1<<20)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Skip(err)
	}
	defer l.Close()
	a := kernel.Attach{Any: true, Size: 1 << 20, Sockets: []*os.File{p.socketOf(l)}}
	if _, err := k.Open().Connect(t.Context(), &a); err != nil {
		t.Fatal(err)
	}
	if n, err := k.Device(0).ReadAt(make([]byte, 512), 0); n != 512 || err != nil {
		t.Error(n, err)
	}
	udp, err := net.Dial("udp", "127.0.0.1:9")
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	f, err := udp.(*net.UDPConn).File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	a.Sockets[0] = f
	if _, err := k.Open().Connect(t.Context(), &a); err == nil || !strings.Contains(err.Error(), "UDP") {
		t.Errorf("a UDP socket was taken: %v", err)
	}
}

// TestSplit reads more than one request may ask for, over four connections.
func TestSplit(t *testing.T) {
	r := attach(t, 4, kernel.Attach{Size: 40 << 20, Timeout: time.Hour})
	r.p.memory = make([]byte, 40<<20)
	if n, err := r.dev.ReadAt(make([]byte, 40<<20), 0); n != 40<<20 || err != nil {
		t.Fatal(n, err)
	}
	for _, q := range r.p.requests() {
		if q.Length > 1280<<10 {
			t.Errorf("a request asks for %d bytes", q.Length)
		}
	}
	for i, s := range r.dev.Sockets() {
		if s.Dead || s.Sent < 5 || (s.Inode == 0 && inodes) {
			t.Errorf("connection %d: %+v", i, s)
		}
	}
}

// inodes says that sockets have inodes here.
var inodes = os.PathSeparator == '/'

func TestRefusals(t *testing.T) {
	r := attach(t, 1, kernel.Attach{})
	for what, a := range map[string]kernel.Attach{
		"CAN_MULTI_CONN": {Any: true, Size: 4096, Sockets: r.p.sockets(2)},
		"no socket":      {Any: true, Size: 4096},
		"at least 512":   {Any: true, Size: 100, Sockets: r.p.sockets(1)},
		"block size":     {Any: true, Size: 4096, BlockSize: 3000, Sockets: r.p.sockets(1)},
		"invalid arg":    {Any: true, Size: 1 << 20, BlockSize: 65536, Sockets: r.p.sockets(1)},
		"identifier":     {Any: true, Size: 4096, Identifier: "a\nb", Sockets: r.p.sockets(1)},
		"in use":         {Index: r.i, Size: 4096, Sockets: r.p.sockets(1)},
	} {
		if _, err := r.d.Connect(r.ctx, &a); err == nil || !strings.Contains(err.Error(), what) {
			t.Errorf("%s: %v", what, err)
		}
	}
	a := kernel.Attach{Index: r.i, Size: 4096, Sockets: r.p.sockets(1)}
	if _, err := r.d.Connect(r.ctx, &a); !errors.Is(err, kernel.ErrBusy) {
		t.Errorf("attach twice: %v", err)
	}
	if err := r.d.Disconnect(r.ctx, 3); !errors.Is(err, kernel.ErrNotConnected) {
		t.Errorf("detach what is not attached: %v", err)
	}
	if err := r.d.Disconnect(r.ctx, 99); !errors.Is(err, kernel.ErrNoDevice) {
		t.Errorf("detach what is not there: %v", err)
	}
	if _, err := r.d.Status(r.ctx, 99); !errors.Is(err, kernel.ErrNoDevice) {
		t.Errorf("status of what is not there: %v", err)
	}
}

// TestReadOnly wants writes refused before the server sees them.
func TestReadOnly(t *testing.T) {
	r := attach(t, 1, kernel.Attach{Flags: proto.FlagHasFlags | proto.FlagReadOnly})
	if _, err := r.dev.WriteAt(make([]byte, 512), 0); err != syscall.EPERM {
		t.Errorf("write: %v", err)
	}
	if err := r.dev.Trim(0, 512); err != syscall.EPERM {
		t.Errorf("trim: %v", err)
	}
	if err := r.dev.Flush(); err != nil {
		t.Errorf("flush: %v", err)
	}
	if info, err := r.d.Info(r.i); err != nil || !info.ReadOnly {
		t.Errorf("info %+v, %v", info, err)
	}
	if log := r.p.requests(); len(log) != 0 {
		t.Errorf("the server was asked %+v", log)
	}
}

// TestError wants each error of the server to be an I/O error.
func TestError(t *testing.T) {
	r := attach(t, 1, kernel.Attach{})
	r.p.answer(func(l *link, q proto.Request) bool { l.fail(q, proto.ENOSPC); return true })
	if _, err := r.dev.WriteAt(make([]byte, 512), 0); err != syscall.EIO {
		t.Errorf("write: %v", err)
	}
	if s := r.dev.Sockets(); s[0].Dead {
		t.Error("an error ended the connection")
	}
}

// TestGarbage wants replies that fit no request to end the connection, which is told
// once.
func TestGarbage(t *testing.T) {
	for name, reply := range map[string]func(proto.Request) []byte{
		"magic":      func(proto.Request) []byte { return make([]byte, proto.SimpleReplySize) },
		"unknown":    func(proto.Request) []byte { return proto.AppendSimpleReply(nil, 0, 77) },
		"queue":      func(proto.Request) []byte { return proto.AppendSimpleReply(nil, 0, 1<<63|9<<16) },
		"generation": func(q proto.Request) []byte { return proto.AppendSimpleReply(nil, 0, q.Cookie+1<<32) },
	} {
		t.Run(name, func(t *testing.T) {
			r := attach(t, 1, kernel.Attach{DeadTimeout: time.Hour, Timeout: 5 * time.Second})
			r.p.answer(func(l *link, q proto.Request) bool { l.conn.Write(reply(q)); return true })
			c := begin(func() error { _, err := r.dev.ReadAt(make([]byte, 512), 0); return err })
			r.awaitDead(1)
			if n := r.k.LinkDeaths(); n != 1 {
				t.Errorf("the death was told %d times", n)
			}
			r.p.answer(nil)
			r.reconfigure(1)
			r.keep()
			r.want(c, nil)
		})
	}
}

// TestReconnect kills the server: what was sent is sent again after the request's time,
// what comes later waits for the new connection only.
func TestReconnect(t *testing.T) {
	const connections = 3
	r := attach(t, connections, kernel.Attach{DeadTimeout: time.Hour, Timeout: 5 * time.Second, Identifier: "x"})
	held := make(chan struct{}, 1)
	r.p.answer(func(*link, proto.Request) bool { held <- struct{}{}; return true })
	old := begin(func() error { _, err := r.dev.WriteAt(make([]byte, 512), 0); return err })
	<-held
	r.p.kill()
	r.awaitDead(connections)
	if n := r.k.LinkDeaths(); n != connections {
		t.Errorf("%d deaths were told, want %d", n, connections)
	}
	r.p.answer(nil)
	fresh := begin(func() error { _, err := r.dev.ReadAt(make([]byte, 512), 0); return err })
	r.await("two requests", func() bool { return r.dev.InFlight() == 2 })
	if err := r.d.Reconfigure(r.ctx, r.i, &kernel.Change{Sockets: r.p.sockets(1)}); !errors.Is(err, kernel.ErrIdentifier) {
		t.Errorf("reconfigure without the identifier: %v", err)
	}
	timeout := 5 * time.Second
	c := &kernel.Change{Sockets: r.p.sockets(connections + 1), Identifier: "x", Timeout: &timeout}
	if err := r.d.Reconfigure(r.ctx, r.i, c); !errors.Is(err, kernel.ErrNotTaken) || !strings.Contains(err.Error(), "3 of 4") {
		t.Errorf("one socket too many: %v", err)
	}
	r.keep() // a loaded machine may be slower than the timeout
	r.want(fresh, nil)
	r.want(old, nil)
	if r.dev.Resent() == 0 {
		t.Error("no request was sent again")
	}
}

// TestTimer wants a request that was sent on a connection that has died not to be sent
// again before its time.
func TestTimer(t *testing.T) {
	r := attach(t, 1, kernel.Attach{DeadTimeout: time.Hour}) // 30 s, which are 600 ms here
	held := make(chan struct{}, 1)
	r.p.answer(func(*link, proto.Request) bool { held <- struct{}{}; return true })
	begun := time.Now()
	c := begin(func() error { _, err := r.dev.WriteAt(make([]byte, 512), 0); return err })
	<-held
	r.p.kill()
	r.awaitDead(1)
	r.p.answer(nil)
	r.reconfigure(1)
	r.want(c, nil)
	if took := time.Since(begun); took < 30*second {
		t.Errorf("sent again after %v", took)
	}
}

// TestSibling kills one connection of two: the other one takes over.
func TestSibling(t *testing.T) {
	r := attach(t, 2, kernel.Attach{Timeout: time.Hour})
	r.p.links[0].conn.Close()
	r.awaitDead(1)
	for range 4 {
		if _, err := r.dev.ReadAt(make([]byte, 512), 0); err != nil {
			t.Fatal(err)
		}
	}
	s := r.dev.Sockets()
	if !s[0].Dead || s[1].Dead || s[0].Sent != 0 || s[1].Sent != 4 {
		t.Errorf("connections %+v", s)
	}
	r.reconfigure(1)
	if s := r.dev.Sockets(); s[0].Dead || s[1].Dead {
		t.Errorf("connections %+v", s)
	}
	// Without a timeout, nobody tells that a socket was dropped.
	before := r.dev.Sockets()
	r.reconfigure(1)
	if after := r.dev.Sockets(); !slices.Equal(before, after) {
		t.Errorf("connections %+v became %+v", before, after)
	}
}

// TestSlow wants a slow server declared dead after the timeout, with several
// connections also when it is 0, but not with one.
func TestSlow(t *testing.T) {
	for name, tt := range map[string]struct {
		connections int
		timeout     time.Duration
		dead        bool
	}{
		"one, timeout": {1, 2 * time.Second, true},
		"one, none":    {1, 0, false},
		"two, none":    {2, 0, true},
	} {
		t.Run(name, func(t *testing.T) {
			r := attach(t, tt.connections, kernel.Attach{Timeout: tt.timeout, DeadTimeout: time.Hour})
			held := make(chan func(), 1)
			r.p.answer(func(l *link, q proto.Request) bool {
				select {
				case held <- func() { l.do(q, nil) }:
					return true
				default:
					return false
				}
			})
			c := begin(func() error { _, err := r.dev.ReadAt(make([]byte, 512), 0); return err })
			if tt.dead {
				r.awaitDead(1)
				r.p.answer(nil)
				r.reconfigure(1)
				r.keep()
				r.want(c, nil)
				return
			}
			late := <-held
			time.Sleep(70 * second) // twice its time is over
			late()
			r.want(c, nil)
			if n := r.k.LinkDeaths(); n != 0 {
				t.Errorf("%d connections died", n)
			}
		})
	}
}

// TestDeadTimeout wants requests to wait that long, and no longer.
func TestDeadTimeout(t *testing.T) {
	r := attach(t, 1, kernel.Attach{DeadTimeout: 5 * time.Second})
	r.p.kill()
	r.awaitDead(1)
	begun := time.Now()
	if _, err := r.dev.ReadAt(make([]byte, 512), 0); err != syscall.EIO {
		t.Errorf("read: %v", err)
	}
	if took := time.Since(begun); took < 5*second {
		t.Errorf("failed after %v", took)
	}
	if _, err := r.dev.ReadAt(make([]byte, 512), 0); err != syscall.EIO { // at once
		t.Errorf("read: %v", err)
	}
	r.reconfigure(1)
	if _, err := r.dev.ReadAt(make([]byte, 512), 0); err != nil {
		t.Errorf("read on a new connection: %v", err)
	}
}

// TestDisconnect wants all that waits to fail, DISC on the wire, and the device to be
// gone when its last user has gone.
func TestDisconnect(t *testing.T) {
	r := attach(t, 1, kernel.Attach{DeadTimeout: time.Hour})
	release, err := r.dev.Open()
	if err != nil {
		t.Fatal(err)
	}
	r.p.answer(func(_ *link, q proto.Request) bool { return q.Command != proto.CmdDisc })
	sent := begin(func() error { _, err := r.dev.ReadAt(make([]byte, 512), 0); return err })
	r.await("a request", func() bool { return len(r.p.requests()) == 1 })
	if err := r.d.Disconnect(r.ctx, r.i); err != nil {
		t.Fatal(err)
	}
	r.want(sent, syscall.EIO)
	r.await("DISC", func() bool { l := r.p.requests(); return l[len(l)-1].Command == proto.CmdDisc })
	info, err := r.d.Info(r.i)
	if err != nil || info.Gone() {
		t.Errorf("gone while it is open: %+v, %v", info, err)
	}
	a := kernel.Attach{Index: r.i, Size: 1 << 20, Sockets: r.p.sockets(1)}
	if _, err := r.d.Connect(r.ctx, &a); !errors.Is(err, kernel.ErrBusy) {
		t.Errorf("attach what is not gone: %v", err)
	}
	if err := r.d.Reconfigure(r.ctx, r.i, &kernel.Change{Sockets: r.p.sockets(1)}); !errors.Is(err, kernel.ErrNotConnected) {
		t.Errorf("reconfigure what is detached: %v", err)
	}
	release()
	if info, err := r.d.Info(r.i); err != nil || !info.Gone() {
		t.Errorf("not gone: %+v, %v", info, err)
	}
	if n, err := r.dev.ReadAt(make([]byte, 512), 0); n != 0 || err != io.EOF {
		t.Errorf("read: %d, %v", n, err)
	}
	if n := r.k.LinkDeaths(); n != 0 {
		t.Errorf("%d deaths were told of a device that was detached", n)
	}
	r.p.answer(nil)
	a.Sockets = r.p.sockets(1)
	if _, err := r.d.Connect(r.ctx, &a); err != nil {
		t.Errorf("attach again: %v", err)
	}
}

// TestDisconnectWaiting wants requests that wait for a connection to fail.
func TestDisconnectWaiting(t *testing.T) {
	r := attach(t, 1, kernel.Attach{DeadTimeout: time.Hour})
	r.p.kill()
	r.awaitDead(1)
	c := begin(func() error { _, err := r.dev.ReadAt(make([]byte, 512), 0); return err })
	r.await("a request", func() bool { return r.dev.InFlight() == 1 })
	if err := r.d.Disconnect(r.ctx, r.i); err != nil {
		t.Fatal(err)
	}
	r.want(c, syscall.EIO)
}

// TestOnClose tries the client flags.
func TestOnClose(t *testing.T) {
	r := attach(t, 1, kernel.Attach{Client: kernel.DisconnectOnClose | kernel.DestroyOnDisconnect})
	release, err := r.dev.Open()
	if err != nil {
		t.Fatal(err)
	}
	release()
	r.await("the device is removed", func() bool { return r.k.Device(r.i) == nil })
}

// TestResize changes the size, which waits for requests that are under way, and hangs
// if they wait for a connection.
func TestResize(t *testing.T) {
	r := attach(t, 1, kernel.Attach{DeadTimeout: time.Hour})
	if err := r.d.Reconfigure(r.ctx, r.i, &kernel.Change{Size: 8 << 20}); err != nil {
		t.Fatal(err)
	}
	if info, err := r.d.Info(r.i); err != nil || info.Size != 8<<20 {
		t.Errorf("info %+v, %v", info, err)
	}
	r.p.kill()
	r.awaitDead(1)
	c := begin(func() error { _, err := r.dev.ReadAt(make([]byte, 512), 0); return err })
	r.await("a request", func() bool { return r.dev.InFlight() == 1 })
	ctx, cancel := context.WithCancel(r.ctx)
	stuck := begin(func() error { return r.d.Reconfigure(ctx, r.i, &kernel.Change{Size: 9 << 20}) })
	other := begin(func() error { return r.d.Reconfigure(ctx, r.i, &kernel.Change{Sockets: r.p.sockets(1)}) })
	r.await("the kernel is stuck", func() bool { return r.dev.InFlight() == 1 })
	cancel()
	r.want(stuck, context.Canceled)
	<-other // either: it came before, or is stuck as well
	r.k.Close()
	<-c
}

func TestIntercept(t *testing.T) {
	k, p := newKernel(t), newPeer(t, 1<<20)
	d := k.Open()
	k.Intercept(func(_ context.Context, op kerneltest.Op, i kernel.Index) error {
		if op == kerneltest.OpConnect && i == 5 {
			return kernel.ErrPermission
		}
		return nil
	})
	a := kernel.Attach{Index: 5, Size: 1 << 20, Sockets: p.sockets(1)}
	if _, err := d.Connect(t.Context(), &a); !errors.Is(err, kernel.ErrPermission) {
		t.Errorf("connect: %v", err)
	}
	// A kernel that hangs, and attaches the device after all: it is detached again.
	ctx, cancel := context.WithCancel(t.Context())
	hang := make(chan struct{})
	k.Intercept(func(context.Context, kerneltest.Op, kernel.Index) error { cancel(); <-hang; return nil })
	if _, err := d.Connect(ctx, &a); !errors.Is(err, context.Canceled) {
		t.Errorf("connect: %v", err)
	}
	close(hang)
	k.Intercept(nil)
	k.Close() // waits for it
	if _, err := d.Connect(t.Context(), &a); err == nil {
		t.Error("a closed kernel attaches")
	}
	if a := k.Device(5).Attached(); a != nil {
		t.Errorf("attached: %+v", a)
	}
}

func TestAny(t *testing.T) {
	k, p := kerneltest.New(kerneltest.Config{Devices: 2}), newPeer(t, 1<<20)
	defer k.Close()
	d := k.Open()
	release, err := k.Device(0).Open() // which makes it look connected
	if err != nil {
		t.Fatal(err)
	}
	defer release()
	for want := kernel.Index(1); want < 4; want++ {
		i, err := d.Connect(t.Context(), &kernel.Attach{Any: true, Size: 1 << 20, Sockets: p.sockets(1)})
		if err != nil || i != want {
			t.Fatalf("got %d, %v; want %d", i, err, want)
		}
	}
	if err := d.Disconnect(t.Context(), 2); err != nil {
		t.Fatal(err)
	}
	list, err := d.StatusAll(t.Context())
	want := []kernel.Status{{Index: 0, Connected: true}, {Index: 1, Connected: true}, {Index: 2}, {Index: 3, Connected: true}}
	if err != nil || !slices.Equal(list, want) {
		t.Errorf("got %+v, %v; want %+v", list, err, want)
	}
	if err := d.Rescan(t.Context(), 1); err != nil {
		t.Error(err)
	}
	read := func(r proto.Request) bool { return r.Command == proto.CmdRead } // beside the DISC of 2
	if log := p.requests(); !slices.ContainsFunc(log, read) {
		t.Errorf("looking for partitions, the kernel asked %+v", log)
	}
}
