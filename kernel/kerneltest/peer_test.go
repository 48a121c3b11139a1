package kerneltest_test

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	"nbd.example/nbd/kernel"
	"nbd.example/nbd/kernel/kerneltest"
	"nbd.example/nbd/proto"
)

// limit ends what hangs. It is no measure of speed.
const limit = time.Minute

// second is that of the fake kernels here: long enough for a loaded machine to do what
// comes before the end of a timeout that is not meant to fire.
const second = 20 * time.Millisecond

// everything is what a server offers.
const everything = proto.FlagHasFlags | proto.FlagSendFlush | proto.FlagSendFUA | proto.FlagSendTrim |
	proto.FlagSendWriteZeroes | proto.FlagCanMultiConn

// peer is a server, as far as the driver sees one: any number of connections to a disk
// in memory.
type peer struct {
	t  *testing.T
	mu sync.Mutex
	// memory is the disk.
	memory []byte
	// log lists the requests, without cookies.
	log []proto.Request
	// hook, if not nil, may do something else than answer: then it reports true.
	hook  func(p *link, r proto.Request) bool
	links []*link
}

// link is one connection of a peer.
type link struct {
	*peer
	number int
	conn   net.Conn
}

func newPeer(t *testing.T, size int) *peer {
	p := &peer{t: t, memory: make([]byte, size)}
	t.Cleanup(p.kill)
	return p
}

// kill ends all connections.
func (p *peer) kill() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, l := range p.links {
		l.conn.Close()
	}
}

// answer installs a hook.
func (p *peer) answer(f func(*link, proto.Request) bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.hook = f
}

// requests returns what was asked for.
func (p *peer) requests() []proto.Request {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]proto.Request(nil), p.log...)
}

// socket makes a connection, and returns the driver's end.
func (p *peer) socket() *os.File {
	p.t.Helper()
	dir, err := os.MkdirTemp("", "nbd") // t.TempDir is too long for a socket
	if err != nil {
		p.t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		p.t.Fatal(err)
	}
	defer l.Close()
	return p.socketOf(l)
}

// socketOf makes a connection by way of a listener.
func (p *peer) socketOf(l net.Listener) *os.File {
	p.t.Helper()
	if runtime.GOOS == "windows" {
		p.t.Skip("sockets cannot be handed over on this system")
	}
	client, err := net.Dial(l.Addr().Network(), l.Addr().String())
	if err != nil {
		p.t.Fatal(err)
	}
	defer client.Close()
	server, err := l.Accept()
	if err != nil {
		p.t.Fatal(err)
	}
	f, err := client.(interface{ File() (*os.File, error) }).File()
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { f.Close() })
	p.mu.Lock()
	defer p.mu.Unlock()
	k := &link{peer: p, number: len(p.links), conn: server}
	p.links = append(p.links, k)
	go k.serve()
	return f
}

// sockets makes n connections.
func (p *peer) sockets(n int) (list []*os.File) {
	for range n {
		list = append(list, p.socket())
	}
	return list
}

func (l *link) serve() {
	defer l.conn.Close()
	for {
		var b [proto.RequestSize]byte
		if _, err := io.ReadFull(l.conn, b[:]); err != nil {
			return
		}
		var r proto.Request
		if !proto.ParseRequest(b[:], &r) {
			l.t.Errorf("the kernel sent %x", b)
			return
		}
		var data []byte
		if r.Command == proto.CmdWrite {
			data = make([]byte, r.Length)
			if _, err := io.ReadFull(l.conn, data); err != nil {
				return
			}
		}
		l.mu.Lock()
		logged := r
		logged.Cookie = 0
		l.log = append(l.log, logged)
		hook := l.hook
		l.mu.Unlock()
		if hook != nil && hook(l, r) {
			continue
		}
		if r.Command == proto.CmdDisc {
			return
		}
		l.do(r, data)
	}
}

// do does what is asked for, and says so.
func (l *link) do(r proto.Request, data []byte) {
	l.mu.Lock()
	out := proto.AppendSimpleReply(nil, 0, r.Cookie)
	switch r.Command {
	case proto.CmdRead:
		out = append(out, l.memory[r.Offset:][:r.Length]...)
	case proto.CmdWrite:
		copy(l.memory[r.Offset:], data)
	case proto.CmdTrim, proto.CmdWriteZeroes:
		clear(l.memory[r.Offset:][:r.Length])
	}
	l.mu.Unlock()
	l.conn.Write(out)
}

// fail answers with an error.
func (l *link) fail(r proto.Request, e proto.Errno) {
	l.conn.Write(proto.AppendSimpleReply(nil, e, r.Cookie))
}

// rig is a kernel with an attached device.
type rig struct {
	*testing.T
	k    *kerneltest.Kernel
	d    *kerneltest.Driver
	dev  *kerneltest.Device
	i    kernel.Index
	p    *peer
	ctx  context.Context
	dead chan kernel.Index // LINK_DEAD
}

// newKernel returns a kernel that ends with the test.
func newKernel(t *testing.T) *kerneltest.Kernel {
	k := kerneltest.New(kerneltest.Config{Second: second})
	t.Cleanup(func() { k.Close() })
	return k
}

// attach attaches a device; what a does not say is chosen.
func attach(t *testing.T, connections int, a kernel.Attach) *rig {
	t.Helper()
	r := &rig{T: t, k: newKernel(t), p: newPeer(t, 1<<20), dead: make(chan kernel.Index, 100)}
	r.d = r.k.Open()
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	t.Cleanup(cancel)
	r.ctx = ctx
	if err := r.d.Watch(ctx, func(i kernel.Index) { r.dead <- i }); err != nil {
		t.Fatal(err)
	}
	a.Sockets = r.p.sockets(connections)
	if a.Size == 0 {
		a.Size = 1 << 20
	}
	if a.Flags == 0 {
		a.Flags = everything
	}
	i, err := r.d.Connect(ctx, &a)
	if err != nil {
		t.Fatal(err)
	}
	r.i, r.dev = i, r.k.Device(i)
	return r
}

// awaitDead waits for n messages that a connection has died.
func (r *rig) awaitDead(n int) {
	r.Helper()
	for range n {
		select {
		case i := <-r.dead:
			if i != r.i {
				r.Fatalf("a connection of %s died, want %s", i.Name(), r.i.Name())
			}
		case <-r.ctx.Done():
			r.Fatal("no message of a dead connection")
		}
	}
}

// reconfigure offers n new sockets.
func (r *rig) reconfigure(n int) {
	r.Helper()
	if err := r.d.Reconfigure(r.ctx, r.i, &kernel.Change{Sockets: r.p.sockets(n)}); err != nil {
		r.Fatal(err)
	}
}

// keep offers a new socket for each connection that dies from now on.
func (r *rig) keep() {
	ctx, cancel := context.WithCancel(r.ctx)
	done := make(chan struct{})
	r.Cleanup(func() { cancel(); <-done })
	go func() {
		defer close(done)
		for {
			select {
			case <-r.dead:
				c := &kernel.Change{Sockets: r.p.sockets(1), Identifier: r.dev.Attached().Identifier}
				if err := r.d.Reconfigure(ctx, r.i, c); err != nil && ctx.Err() == nil {
					r.Error(err)
				}
			case <-ctx.Done():
				return
			}
		}
	}()
}

// await asks until something is so.
func (r *rig) await(what string, so func() bool) {
	r.Helper()
	for !so() {
		if r.ctx.Err() != nil {
			r.Fatalf("waited in vain: %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}

// begin starts an operation, and returns where its error will be.
func begin(f func() error) chan error {
	c := make(chan error, 1)
	go func() { c <- f() }()
	return c
}

// want waits for the error of an operation.
func (r *rig) want(c chan error, want error) {
	r.Helper()
	select {
	case err := <-c:
		if !errors.Is(err, want) {
			r.Fatalf("got error %v, want %v", err, want)
		}
	case <-r.ctx.Done():
		r.Fatal("an operation does not end")
	}
}
