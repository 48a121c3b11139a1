package supervise

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"nbd.example/nbd/block"
	"nbd.example/nbd/kernel"
	"nbd.example/nbd/kernel/kerneltest"
	"nbd.example/nbd/server"
	"nbd.example/nbd/supervise/pass"
	"nbd.example/nbd/supervise/sock"
)

func (r *rig) awaitSize(d *Device, dev *kerneltest.Device, want int64) {
	r.t.Helper()
	r.await(d, "the new size", func(st State) bool { return st.Size == want })
	if a := dev.Attached(); a.Size != want || a.DeadTimeout != forEver() {
		r.t.Errorf("the kernel has %d bytes and waits %v", a.Size, a.DeadTimeout)
	}
	if _, err := dev.WriteAt(make([]byte, 512), want-512); err != nil {
		r.t.Errorf("write to the new end: %v", err)
	}
}

// A server that comes back with a larger export makes the device larger.
func TestGrownAtReconnect(t *testing.T) {
	r, h, x := newRig(t), newHost(t, "unix"), newDisk("one")
	h.serve(x)
	d, dev := r.attach(&Spec{URIs: []string{h.uri()}, Connections: 2, Timeout: brisk})
	l := startLoad(dev, 2)
	l.progress(t, 10)
	h.kill()
	x.resize(2 * diskSize)
	h.serve(x)
	r.awaitSize(d, dev, 2*diskSize)
	l.progress(t, 10)
	if err := l.end(); err != nil {
		t.Error(err)
	}
}

// servePrivate opens the disk for each connection, which then serves the size of that
// moment.
func servePrivate(h *host, x *disk) {
	e := x.export()
	e.Private = true
	h.start(server.Config{Exports: []*server.Export{e}})
}

// A server whose export grows while it runs is asked; connections that would not serve
// the new end are replaced first.
func TestGrownByInfo(t *testing.T) {
	for _, how := range []string{"by itself", "on demand"} {
		t.Run(how, func(t *testing.T) {
			r, h, x := newRig(t), newHost(t, "unix"), newDisk("one")
			if how == "by itself" {
				r.cfg.ResizeInterval = 5 * time.Millisecond
			}
			servePrivate(h, x)
			d, dev := r.attach(&Spec{URIs: []string{h.uri()}})
			r.await(d, "the server's word", func(st State) bool { return st.Seen.InfoAgrees })
			x.resize(3 * diskSize)
			if how == "on demand" {
				if size, err := d.Resize(r.ctx(), 2*diskSize); size != 2*diskSize || err != nil {
					t.Errorf("%d, %v", size, err)
				}
				if size, err := d.Resize(r.ctx(), 0); size != 3*diskSize || err != nil {
					t.Errorf("%d, %v", size, err)
				}
			}
			r.awaitSize(d, dev, 3*diskSize)
			if size, err := d.Resize(r.ctx(), 0); size != 3*diskSize || err != nil {
				t.Errorf("again: %d, %v", size, err)
			}
			eventually(t, "one connection alive", func() bool { return alive(dev) == 1 })
		})
	}
}

// The size that somebody has asked for stays, whatever the server has, through reconnects
// and beyond the process, until he asks for all.
func TestResizedStays(t *testing.T) {
	r, h, x := newRig(t), newHost(t, "unix"), newDisk("one")
	r.cfg.ResizeInterval = 5 * time.Millisecond
	servePrivate(h, x)
	d, dev := r.attach(&Spec{URIs: []string{h.uri()}, Timeout: brisk})
	r.await(d, "the server's word", func(st State) bool { return st.Seen.InfoAgrees })
	stays := func(when string, want int64) {
		t.Helper()
		// The second call comes after all that the keeper does by itself: a larger device
		// would refuse it.
		for range 2 {
			if size, err := d.Resize(r.ctx(), want); size != want || err != nil {
				t.Errorf("%s: %d, %v", when, size, err)
			}
		}
	}
	stays("the size that it has", diskSize)
	x.resize(3 * diskSize)
	stays("the server has grown", diskSize)
	stays("enlarged", 2*diskSize)
	h.kill()
	servePrivate(h, x)
	r.await(d, "a reconnect", func(st State) bool { return st.Phase == Attached && st.Reconnects >= 2 })
	stays("connected anew", 2*diskSize)
	if err := r.s.Close(r.ctx(), true); err != nil {
		t.Fatal(err)
	}
	d = r.adoptOne(d.Index())
	if st := d.Status(); st.Size != 2*diskSize || st.Limit != 2*diskSize {
		t.Errorf("adopted: %+v", st)
	}
	stays("adopted", 2*diskSize)
	if size, err := d.Resize(r.ctx(), 0); size != 3*diskSize || err != nil {
		t.Errorf("all of it: %d, %v", size, err)
	}
	h.kill()
	x.resize(4 * diskSize)
	servePrivate(h, x)
	r.awaitSize(d, dev, 4*diskSize)
}

// A server that says something else by INFO than by GO, as the reference's does, is not
// believed: the device keeps its size, whatever INFO says later.
func TestInfoDisagrees(t *testing.T) {
	r, h, x := newRig(t), newHost(t, "unix"), newDisk("one")
	e, opens := x.export(), 0
	e.Private = true
	e.Open = func(context.Context, server.Client) (*block.Device, error) {
		x.mu.Lock()
		defer x.mu.Unlock()
		opens++
		switch opens {
		case 1: // by GO
			return block.New(&opened{x, diskSize})
		case 2: // by INFO, when it is attached
			return block.New(&opened{x, 0})
		}
		return block.New(&opened{x, 2 * diskSize})
	}
	h.start(server.Config{Exports: []*server.Export{e}})
	d, dev := r.attach(&Spec{URIs: []string{h.uri()}})
	r.await(d, "the server's word", func(st State) bool { return st.Seen.Asked })
	if _, err := d.Resize(r.ctx(), 0); err == nil || !strings.Contains(err.Error(), "does not tell the size") {
		t.Errorf("resize: %v", err)
	}
	if st := d.Status(); st.Seen.InfoAgrees || st.Size != diskSize || dev.Attached().Size != diskSize {
		t.Errorf("%+v; the kernel has %d bytes", st, dev.Attached().Size)
	}
}

// With several connections all are replaced, while the old ones work.
func TestGrownSeveral(t *testing.T) {
	r, h, x := newRig(t), newHost(t, "unix"), newDisk("one")
	h.serve(x)
	d, dev := r.attach(&Spec{URIs: []string{h.uri()}, Connections: 3, Timeout: brisk})
	l := startLoad(dev, 2)
	l.progress(t, 10)
	old := h.retire()
	x.resize(2 * diskSize)
	h.serve(x)
	if size, err := d.Resize(r.ctx(), 0); size != 2*diskSize || err != nil {
		t.Errorf("%d, %v", size, err)
	}
	r.awaitSize(d, dev, 2*diskSize)
	l.progress(t, 10)
	if err := l.end(); err != nil {
		t.Error(err)
	}
	r.await(d, "no dead connections", func(st State) bool { return st.Phase == Attached && st.Reconnects >= 3 })
	eventually(t, "the kernel's connections", func() bool { return alive(dev) == 3 })
	old.kill() // it has none of them
	if st := d.Status(); st.Phase != Attached || alive(dev) != 3 {
		t.Errorf("%+v", st)
	}
}

// A connection that was to be replaced, and was not, since the device had no moment without
// requests, is one like others: its death is told at once.
func TestGrownNotRenewed(t *testing.T) {
	r, h, x := newRig(t), newHost(t, "tcp"), newDisk("one")
	var down atomic.Bool
	r.cfg.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		if down.Load() {
			<-ctx.Done()
			return nil, ctx.Err()
		}
		return new(net.Dialer).DialContext(ctx, network, address)
	}
	e, gate := x.export(), make(chan struct{})
	e.Private = true
	e.Open = func(context.Context, server.Client) (*block.Device, error) {
		x.mu.Lock()
		defer x.mu.Unlock()
		return block.New(&gated{opened{x, int64(len(x.data))}, gate})
	}
	h.start(server.Config{Exports: []*server.Export{e}})
	r.supervisor().times.quiet = time.Millisecond
	d, dev := r.attach(&Spec{URIs: []string{h.uri()}, ConnectTimeout: 2 * hang})
	r.await(d, "the server's word", func(st State) bool { return st.Seen.InfoAgrees })
	x.resize(2 * diskSize)
	read := make(chan error, 1)
	go func() {
		_, err := dev.ReadAt(make([]byte, 512), 0)
		read <- err
	}()
	eventually(t, "a request", func() bool {
		i, err := r.cfg.Kernel.Info(d.Index())
		return err == nil && i.Reads > 0
	})
	if _, err := d.Resize(r.ctx(), 0); err == nil || !strings.Contains(err.Error(), "no moment without requests") {
		t.Fatalf("resize: %v", err)
	}
	close(gate)
	if err := <-read; err != nil {
		t.Error(err)
	}
	down.Store(true)
	h.kill()
	r.awaitPhase(d, Reconnecting) // not before somebody has answered
}

// gated answers no reads before the gate is open.
type gated struct {
	opened
	gate chan struct{}
}

func (g *gated) ReadAt(ctx context.Context, p []byte, off int64) error {
	<-g.gate
	return g.opened.ReadAt(ctx, p, off)
}

// It never shrinks, never grows past what the server has or the user wants, and not
// while connections are dead.
func TestResizeRefusals(t *testing.T) {
	r, h, x := newRig(t), newHost(t, "unix"), newDisk("one")
	servePrivate(h, x)
	d, dev := r.attach(&Spec{URIs: []string{h.uri()}, Size: diskSize / 2})
	if size, err := d.Resize(r.ctx(), diskSize); size != diskSize || err != nil {
		t.Errorf("%d, %v", size, err)
	}
	for size, want := range map[int64]string{diskSize / 2: "does not shrink", 2 * diskSize: "fewer than"} {
		if _, err := d.Resize(r.ctx(), size); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("to %d: %v", size, err)
		}
	}
	h.kill()
	r.awaitPhase(d, Reconnecting)
	if _, err := d.Resize(r.ctx(), 0); err == nil || !strings.Contains(err.Error(), "dead") {
		t.Errorf("without a connection: %v", err)
	}
	if a := dev.Attached(); a.Size != diskSize {
		t.Errorf("%d bytes", a.Size)
	}
}

// A connection that dies while the size changes does not hang the kernel for ever: for
// that moment requests do not wait for ever.
func TestResizeWaitsLess(t *testing.T) {
	r, h, x := newRig(t), newHost(t, "unix"), newDisk("one")
	h.serve(x)
	d, dev := r.attach(&Spec{URIs: []string{h.uri()}, Size: diskSize / 2})
	var seen []time.Duration
	r.k.Intercept(func(_ context.Context, op kerneltest.Op, _ kernel.Index) error {
		if op == kerneltest.OpReconfigure {
			seen = append(seen, dev.Attached().DeadTimeout)
		}
		return nil
	})
	if _, err := d.Resize(r.ctx(), diskSize); err != nil {
		t.Fatal(err)
	}
	if len(seen) != 3 || seen[1] != resizeDead || dev.Attached().DeadTimeout != forEver() {
		t.Errorf("requests waited %v, then %v", seen, dev.Attached().DeadTimeout)
	}
}

// What was changed for that moment is put right, whatever fails meanwhile.
func TestResizeRestores(t *testing.T) {
	const first, second = 3, 4 // calls: a minute, the size, for ever, and again
	for _, fails := range []int64{1, 2, first, second} {
		r, h, x := newRig(t), newHost(t, "unix"), newDisk("one")
		h.serve(x)
		d, dev := r.attach(&Spec{URIs: []string{h.uri()}, Size: diskSize / 2})
		var calls atomic.Int64
		r.k.Intercept(func(_ context.Context, op kerneltest.Op, _ kernel.Index) error {
			if op != kerneltest.OpReconfigure {
				return nil
			}
			if n := calls.Add(1); n == fails || fails == second && n == first {
				return errors.New("no memory")
			}
			return nil
		})
		if _, err := d.Resize(r.ctx(), diskSize); (err == nil) != (fails >= first) {
			t.Errorf("call %d fails: %v", fails, err)
		}
		eventually(t, "the time for which requests wait", func() bool { return dev.Attached().DeadTimeout == forEver() })
	}
}

// One who dies in that moment leaves it to the next, whether he leaves sockets or none.
func TestResizeInterrupted(t *testing.T) {
	for _, sockets := range []bool{false, true} {
		r, h, x := newRig(t), newHost(t, "unix"), newDisk("one")
		h.serve(x)
		d, dev := r.attach(&Spec{URIs: []string{h.uri()}, Timeout: calm})
		short, drv := resizeDead, r.k.Open()
		if err := drv.Reconfigure(r.ctx(), d.Index(), &kernel.Change{DeadTimeout: &short, Identifier: d.identifier()}); err != nil {
			t.Fatal(err)
		}
		drv.Close()
		if sockets {
			f, err := copyFile(d.slots[0].file)
			if err != nil {
				t.Fatal(err)
			}
			r.cfg.Inherited = []Socket{{Name: pass.Name(d.Index(), sock.Inode(f)), File: f}}
		}
		r.s.crash()
		d = r.adoptOne(d.Index())
		eventually(t, "the time for which requests wait", func() bool { return dev.Attached().DeadTimeout == forEver() })
		if st := d.Status(); st.Reconnects != 0 {
			t.Errorf("%+v", st)
		}
	}
}
