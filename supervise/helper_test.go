package supervise

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"nbd.example/nbd/block"
	"nbd.example/nbd/internal/testgate"
	"nbd.example/nbd/kernel"
	"nbd.example/nbd/kernel/kerneltest"
	"nbd.example/nbd/proto"
	"nbd.example/nbd/server"
)

// hang is how long anything may take before it counts as hanging.
const hang = 90 * time.Second

const diskSize = 1 << 20

// disk outlives the servers that serve it.
type disk struct {
	mu       sync.Mutex
	data     []byte
	instance string
	ro       bool
}

func newDisk(instance string) *disk { return &disk{data: make([]byte, diskSize), instance: instance} }

// opened is the disk as one server serves it.
type opened struct {
	d    *disk
	size int64
}

func (o *opened) Caps() block.Caps {
	return block.Caps{Size: o.size, MultiConn: true, Instance: o.d.instance, ReadOnly: o.d.ro}
}
func (o *opened) Close() error { return nil }
func (o *opened) ReadAt(_ context.Context, p []byte, off int64) error {
	o.d.mu.Lock()
	defer o.d.mu.Unlock()
	copy(p, o.d.data[off:])
	return nil
}
func (o *opened) WriteAt(_ context.Context, p []byte, off int64, _ block.Flags) error {
	o.d.mu.Lock()
	defer o.d.mu.Unlock()
	copy(o.d.data[off:], p)
	return nil
}
func (o *opened) Flush(context.Context) error                           { return nil }
func (o *opened) Trim(context.Context, int64, int64, block.Flags) error { return nil }

func (d *disk) resize(n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	grown := make([]byte, n)
	copy(grown, d.data)
	d.data = grown
}

func (d *disk) export() *server.Export {
	return &server.Export{Name: "disk", Settings: "same", Open: func(context.Context, server.Client) (*block.Device, error) {
		d.mu.Lock()
		defer d.mu.Unlock()
		return block.New(&opened{d, int64(len(d.data))})
	}}
}

// host is a server that can be killed and started again.
type host struct {
	t       *testing.T
	network string
	address string
	server  *server.Server
	served  chan struct{}
	conns   *conns
}

// cuttable is a connection that the server leaves in package net, where others can cut it.
type cuttable struct{ *net.TCPConn }

// conns counts and cuts the connections of a host.
type conns struct {
	net.Listener
	mu       sync.Mutex
	open     []net.Conn
	accepted int
	limit    int // how many are accepted; the rest get no word; 0 for all
}

func (c *conns) Accept() (net.Conn, error) {
	for {
		conn, err := c.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if tcp, ok := conn.(*net.TCPConn); ok {
			conn = cuttable{tcp}
		}
		c.mu.Lock()
		c.accepted++
		c.open = append(c.open, conn)
		silent := c.limit > 0 && c.accepted > c.limit
		c.mu.Unlock()
		if !silent {
			return conn, nil
		}
	}
}

// cut shuts connections down, from the given one on.
func (c *conns) cut(from, to int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, conn := range c.open[from:to] {
		if u, ok := conn.(*net.UnixConn); ok {
			u.CloseWrite()
			u.CloseRead()
		} else {
			conn.(cuttable).CloseWrite()
		}
	}
}

func (c *conns) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.accepted
}

func newHost(t *testing.T, network string) *host {
	h := &host{t: t, network: network, address: "127.0.0.1:0"}
	if network == "unix" {
		h.address = filepath.Join(tempDir(t), "s")
	}
	t.Cleanup(h.kill)
	return h
}

// tempDir returns a directory whose path is short enough for sockets.
func tempDir(t *testing.T) string {
	dir, err := os.MkdirTemp("", "sv")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// start serves, at the address of the last time.
func (h *host) start(cfg server.Config) { h.startLimited(cfg, 0) }

func (h *host) startLimited(cfg server.Config, limit int) {
	h.t.Helper()
	h.startWith(cfg, limit, (*server.Server).Serve)
}

func (h *host) startWith(cfg server.Config, limit int, serve func(*server.Server, net.Listener) error) {
	h.t.Helper()
	s, err := server.New(cfg)
	if err != nil {
		h.t.Fatal(err)
	}
	l, err := net.Listen(h.network, h.address)
	if err != nil {
		h.t.Fatal(err)
	}
	h.address = l.Addr().String()
	h.conns = &conns{Listener: l, limit: limit}
	h.server, h.served = s, make(chan struct{})
	go func() {
		defer close(h.served)
		serve(s, h.conns)
	}()
}

func (h *host) serve(d *disk) {
	h.start(server.Config{Exports: []*server.Export{d.export()}, AllowList: true})
}

// kill ends the server as SIGKILL does: everything is cut.
func (h *host) kill() {
	if h.server == nil {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	h.server.Shutdown(ctx)
	<-h.served
	h.conns.mu.Lock()
	for _, c := range h.conns.open {
		c.Close()
	}
	h.conns.mu.Unlock()
	h.server = nil
}

// retire closes the listener. The connections live on; the host that is returned has
// them, and h can be started anew.
func (h *host) retire() *host {
	old := *h
	h.conns.Close()
	<-h.served
	h.server = nil
	h.t.Cleanup(old.kill)
	return &old
}

func (h *host) uri() string {
	if h.network == "unix" {
		return "nbd+unix:///disk?socket=" + h.address
	}
	return "nbd://" + h.address + "/disk"
}

// rig is a fake kernel and a supervisor.
type rig struct {
	t   *testing.T
	k   *kerneltest.Kernel
	dir string
	cfg Config
	s   *Supervisor
}

// Request timeouts: the seconds of the fake kernel are short. A loaded machine does not
// reach calm, which is what rig.attach takes; brisk is for tests in which requests lose
// their connection and are sent again.
const (
	calm  = time.Hour
	brisk = 30 * time.Second
)

var quick = Backoff{First: 2 * time.Millisecond, Most: 50 * time.Millisecond}

func newRig(t *testing.T) *rig {
	testgate.Requires(t, testgate.Linux())
	checkLeaks(t)
	r := &rig{t: t, dir: tempDir(t)}
	r.k = kerneltest.New(kerneltest.Config{Second: 10 * time.Millisecond})
	t.Cleanup(func() { r.k.Close() })
	r.cfg = Config{Kernel: r.k.Open(), Dir: r.dir, Backoff: quick, ResizeInterval: -1, Log: testLog(t)}
	return r
}

// testLog writes to the test's log.
func testLog(t *testing.T) *slog.Logger {
	var over atomic.Bool
	t.Cleanup(func() { over.Store(true) })
	return slog.New(slog.NewTextHandler(writer(func(b []byte) (int, error) {
		if !over.Load() {
			t.Logf("%s", bytes.TrimSpace(b))
		}
		return len(b), nil
	}), nil))
}

type writer func([]byte) (int, error)

func (w writer) Write(b []byte) (int, error) { return w(b) }

// supervisor starts one, and closes it in the end.
func (r *rig) supervisor() *Supervisor {
	r.t.Helper()
	s, err := New(r.cfg)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { r.close(s) })
	r.s = s
	return s
}

func (r *rig) close(s *Supervisor) {
	for _, d := range s.Devices() {
		d.Detach(r.ctx(), true)
	}
	if err := s.Close(r.ctx(), false); err != nil {
		r.t.Errorf("close: %v", err)
	}
}

func (r *rig) ctx() context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), hang)
	r.t.Cleanup(cancel)
	return ctx
}

func (r *rig) attach(spec *Spec) (*Device, *kerneltest.Device) {
	r.t.Helper()
	if r.s == nil {
		r.supervisor()
	}
	if spec.Timeout == 0 {
		spec.Timeout = calm
	}
	d, err := r.s.Attach(r.ctx(), spec)
	if err != nil {
		r.t.Fatal(err)
	}
	return d, r.k.Device(d.Index())
}

// await waits until so is true of the device.
func (r *rig) await(d *Device, what string, so func(State) bool) State {
	r.t.Helper()
	limit := time.After(hang)
	for {
		news := d.Changed()
		st := d.Status()
		if so(st) {
			return st
		}
		select {
		case <-news:
		case <-limit:
			r.t.Fatalf("waited for %s: %+v", what, st)
		}
	}
}

func (r *rig) awaitPhase(d *Device, p Phase) State {
	r.t.Helper()
	return r.await(d, string(p), func(st State) bool { return st.Phase == p })
}

// eventually waits for something that nobody tells.
func eventually(t *testing.T, what string, so func() bool) {
	t.Helper()
	for until := time.Now().Add(hang); !so(); time.Sleep(time.Millisecond) {
		if time.Now().After(until) {
			t.Fatalf("waited for %s", what)
		}
	}
}

// checkLeaks wants that nothing is left when the test has ended.
func checkLeaks(t *testing.T) {
	if l, err := net.Listen("tcp", "127.0.0.1:0"); err == nil {
		l.Close() // the runtime's own descriptors are there from now on
	}
	goroutines, files := runtime.NumGoroutine(), openFiles()
	t.Cleanup(func() {
		for until := time.Now().Add(hang); ; time.Sleep(5 * time.Millisecond) {
			g, f := runtime.NumGoroutine(), openFiles()
			if g <= goroutines && f <= files {
				return
			}
			if time.Now().After(until) {
				stack := make([]byte, 1<<20)
				t.Errorf("%d goroutines were there before and %d are now; %d files, now %d\n%s", goroutines, g, files, f, stack[:runtime.Stack(stack, true)])
				return
			}
		}
	})
}

func openFiles() int {
	list, _ := os.ReadDir("/proc/self/fd")
	return len(list)
}

// load writes to a device and checks what it reads, until it is stopped.
type load struct {
	dev    *kerneltest.Device
	stop   chan struct{}
	wg     sync.WaitGroup
	errors errorList
	writes atomic.Int64
}

const loadBlock = 4096

// startLoad has n goroutines work, each on blocks of its own.
func startLoad(dev *kerneltest.Device, n int) *load {
	l := &load{dev: dev, stop: make(chan struct{})}
	for i := range n {
		l.wg.Go(func() { l.run(i, n) })
	}
	return l
}

func (l *load) run(me, n int) {
	blocks := diskSize / loadBlock / n
	last := make([]uint64, blocks)
	p, q := make([]byte, loadBlock), make([]byte, loadBlock)
	for version := uint64(1); ; version++ {
		select {
		case <-l.stop:
			return
		default:
		}
		b := int(version*7) % blocks
		off := int64(me*blocks+b) * loadBlock
		for i := 0; i < loadBlock; i += 8 {
			binary.LittleEndian.PutUint64(p[i:], version<<8|uint64(me))
		}
		if _, err := l.dev.WriteAt(p, off); err != nil {
			l.errors.add(fmt.Errorf("write %d: %w", version, err))
			return
		}
		last[b] = version
		l.writes.Add(1)
		check := int(version*5) % blocks
		if _, err := l.dev.ReadAt(q, int64(me*blocks+check)*loadBlock); err != nil {
			l.errors.add(fmt.Errorf("read: %w", err))
			return
		}
		if got := binary.LittleEndian.Uint64(q) >> 8; last[check] != 0 && got != last[check] {
			l.errors.add(fmt.Errorf("block %d of %d holds version %d, want %d", check, me, got, last[check]))
			return
		}
		if version%16 == 0 {
			if err := l.dev.Flush(); err != nil {
				l.errors.add(fmt.Errorf("flush: %w", err))
				return
			}
		}
	}
}

// progress waits until so many more writes were answered.
func (l *load) progress(t *testing.T, n int64) {
	t.Helper()
	goal := l.writes.Load() + n
	eventually(t, "writes", func() bool {
		l.errors.mu.Lock()
		defer l.errors.mu.Unlock()
		return l.writes.Load() >= goal || len(l.errors.list) > 0
	})
}

// end stops it and returns what went wrong.
func (l *load) end() error {
	close(l.stop)
	l.wg.Wait()
	return errors.Join(l.errors.list...)
}

// alive counts the connections that the kernel thinks alive.
func alive(dev *kerneltest.Device) (n int) {
	for _, s := range dev.Sockets() {
		if !s.Dead {
			n++
		}
	}
	return n
}

// crash leaves a supervisor as the death of its process does: nothing is written, and
// all its descriptors are closed.
func (s *Supervisor) crash() {
	s.stopListening()
	s.unwatch()
	for _, d := range s.Devices() {
		d.stop()
		d.mu.Lock()
		for _, c := range d.slots {
			c.release()
		}
		d.mu.Unlock()
		if d.local != nil {
			d.local.Close()
		}
	}
	s.worker.Close(context.Background())
	s.poller.Close()
	s.dropInherited(nil)
	s.mu.Lock()
	s.closed = true
	s.devices = map[kernel.Index]*Device{}
	s.mu.Unlock()
	s.finish()
	s.async.Close(context.Background())
}

// hide serves the disk without some of its abilities.
func (d *disk) hide(f proto.TransmissionFlags) server.Config {
	x := d.export()
	x.Hide = f
	return server.Config{Exports: []*server.Export{x}}
}
