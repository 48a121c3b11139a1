package supervise

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"nbd.example/nbd/kernel"
	"nbd.example/nbd/proto"
	"nbd.example/nbd/server"
)

// A server that dies and comes back costs no request, whatever the connections are.
func TestRestartUnderLoad(t *testing.T) {
	for _, network := range []string{"unix", "tcp"} {
		for _, n := range []int{1, 4} {
			t.Run(fmt.Sprintf("%s/%d", network, n), func(t *testing.T) {
				r, h, x := newRig(t), newHost(t, network), newDisk("one")
				h.serve(x)
				d, dev := r.attach(&Spec{URIs: []string{h.uri()}, Connections: n, Timeout: brisk})
				l := startLoad(dev, 4)
				for range 4 {
					l.progress(t, 50)
					h.kill()
					r.awaitPhase(d, Reconnecting)
					h.serve(x)
					r.awaitPhase(d, Attached)
				}
				l.progress(t, 50)
				if err := l.end(); err != nil {
					t.Error(err)
				}
				st := r.await(d, "rest", func(st State) bool { return st.Phase == Attached && st.Reason == "" })
				if st.Reconnects < 4*n {
					t.Errorf("%+v", st)
				}
				eventually(t, "all connections alive in the kernel", func() bool { return alive(dev) == n })
			})
		}
	}
}

// One dead connection of several is replaced, while the others go on.
func TestOneOfSeveral(t *testing.T) {
	r, h, x := newRig(t), newHost(t, "tcp"), newDisk("one")
	h.serve(x)
	d, dev := r.attach(&Spec{URIs: []string{h.uri()}, Connections: 3, Timeout: brisk})
	l := startLoad(dev, 3)
	l.progress(t, 20)
	for i := range 3 {
		before := d.Status()
		h.conns.cut(i, i+1)
		r.await(d, "one connection replaced", func(st State) bool {
			return st.Reconnects >= before.Reconnects+1 && st.Phase == Attached
		})
		l.progress(t, 20)
	}
	if err := l.end(); err != nil {
		t.Error(err)
	}
	eventually(t, "all connections alive in the kernel", func() bool { return alive(dev) == 3 })
}

// The server moves to another address.
func TestSecondAddress(t *testing.T) {
	r, h, other, x := newRig(t), newHost(t, "unix"), newHost(t, "tcp"), newDisk("one")
	h.serve(x)
	other.serve(x)
	d, dev := r.attach(&Spec{URIs: []string{h.uri(), other.uri()}, Connections: 2, Timeout: brisk})
	l := startLoad(dev, 2)
	l.progress(t, 20)
	h.kill()
	st := r.await(d, "the second server", func(st State) bool {
		return st.Phase == Attached && st.Connections[0].Server == other.uri() && st.Connections[1].Server == other.uri()
	})
	l.progress(t, 20)
	if st.Reconnects < 2 {
		t.Errorf("%+v", st)
	}
	h.serve(x)
	other.kill()
	r.await(d, "the first server", func(st State) bool { return st.Phase == Attached && st.Connections[0].Server == h.uri() })
	if err := l.end(); err != nil {
		t.Error(err)
	}
}

// The connections of one device are to one server, as long as one of them lives: two servers
// promise nothing about each other, whatever they say of themselves.
func TestNotTwoServers(t *testing.T) {
	r, h, other, x := newRig(t), newHost(t, "tcp"), newHost(t, "tcp"), newDisk("one")
	h.serve(x)
	other.serve(x)
	d, dev := r.attach(&Spec{URIs: []string{h.uri(), other.uri()}, Connections: 2, Timeout: brisk})
	l := startLoad(dev, 2)
	l.progress(t, 20)
	old := h.retire() // it takes no new connections
	old.conns.cut(0, 1)
	r.await(d, "a failed attempt", func(st State) bool {
		return st.Phase == Degraded && strings.Contains(st.Reason, "refused")
	})
	l.progress(t, 20)
	if n := other.conns.count(); n != 0 {
		t.Errorf("%d connections to the second server, beside one to the first", n)
	}
	old.kill()
	r.await(d, "the second server", func(st State) bool {
		return st.Phase == Attached && st.Connections[0].Server == other.uri() && st.Connections[1].Server == other.uri()
	})
	if err := l.end(); err != nil {
		t.Error(err)
	}
}

// What a server says on a second connection is about the first one only if that lives: the
// right server may have come in the place of a wrong one in between.
func TestChangedBetween(t *testing.T) {
	r, h, x := newRig(t), newHost(t, "tcp"), newDisk("one")
	var mu sync.Mutex
	left := 0 // connections to the wrong server
	r.cfg.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		mu.Lock()
		defer mu.Unlock()
		if left == 1 { // that on which the instance is asked for
			h.kill()
			h.serve(x)
		}
		c, err := new(net.Dialer).DialContext(ctx, network, address)
		if err == nil {
			left--
		}
		return c, err
	}
	h.serve(x)
	d, dev := r.attach(&Spec{URIs: []string{h.uri()}, Timeout: brisk})
	r.await(d, "the server's word", func(st State) bool { return st.Seen.Asked })
	y := newDisk("two")
	mu.Lock()
	h.kill()
	h.serve(y)
	left = 2
	mu.Unlock()
	if st := r.await(d, "a connection", func(st State) bool { return st.Phase == Attached && st.Reconnects > 0 }); st.Reconnects != 1 {
		t.Errorf("the kernel has got a dead connection: %+v", st)
	}
	if _, err := dev.WriteAt([]byte(strings.Repeat("x", 512)), 0); err != nil || y.data[0] != 0 {
		t.Errorf("%v; or the other disk was written", err)
	}
}

// What is not what was attached is not put under the device; when the right one comes
// back, all goes on.
func TestChangedServer(t *testing.T) {
	type change struct {
		name string
		want string
		make func(x *disk) server.Config
	}
	of := func(x *server.Export) server.Config { return server.Config{Exports: []*server.Export{x}} }
	for _, c := range []change{
		{"another instance", "another instance", func(x *disk) server.Config { return of(newDisk("two").export()) }},
		{"smaller", "fewer than the device's", func(x *disk) server.Config {
			y := newDisk("one")
			y.resize(diskSize / 2)
			return of(y.export())
		}},
		{"read-only", "read-only now", func(x *disk) server.Config {
			e := x.export()
			e.ReadOnly = true
			return of(e)
		}},
		{"without flush", "NBD_FLAG_SEND_FLUSH", func(x *disk) server.Config { return x.hide(proto.FlagSendFlush | proto.FlagSendFUA) }},
		{"larger blocks", "blocks of 4096", func(x *disk) server.Config {
			e := x.export()
			e.MinBlock = 4096
			return of(e)
		}},
		{"another name", `"disk-of-another-name"`, func(x *disk) server.Config {
			e := x.export()
			e.Name, e.Aliases = "disk-of-another-name", []string{"disk"}
			return of(e)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, h, x := newRig(t), newHost(t, "unix"), newDisk("one")
			h.serve(x)
			d, dev := r.attach(&Spec{URIs: []string{h.uri()}, Timeout: brisk})
			if d.Status().Seen.Instance == "" {
				r.await(d, "the instance", func(st State) bool { return st.Seen.Instance != "" })
			}
			l := startLoad(dev, 2)
			l.progress(t, 10)
			h.kill()
			h.start(c.make(x))
			st := r.awaitPhase(d, Refused)
			if !strings.Contains(st.Reason, c.want) {
				t.Errorf("the reason is %q, want %q in it", st.Reason, c.want)
			}
			eventually(t, "the kernel to have no connection to the wrong server", func() bool { return alive(dev) == 0 })
			h.kill()
			h.serve(x)
			r.awaitPhase(d, Attached)
			l.progress(t, 10)
			if err := l.end(); err != nil {
				t.Error(err)
			}
		})
	}
}

// With AnyInstance copies of a disk count as the disk.
func TestAnyInstance(t *testing.T) {
	r, h, x := newRig(t), newHost(t, "unix"), newDisk("one")
	h.serve(x)
	d, dev := r.attach(&Spec{URIs: []string{h.uri()}, AnyInstance: true, Timeout: brisk})
	h.kill()
	h.serve(newDisk("two"))
	if _, err := dev.WriteAt(make([]byte, 512), 0); err != nil {
		t.Fatal(err)
	}
	r.await(d, "a reconnect", func(st State) bool { return st.Reconnects >= 1 })
}

// With the policy to fail, requests fail while there is no connection, and the device
// works again afterwards.
func TestFailPolicy(t *testing.T) {
	r, h, x := newRig(t), newHost(t, "unix"), newDisk("one")
	h.serve(x)
	d, dev := r.attach(&Spec{URIs: []string{h.uri()}, OnFailure: Policy{Fail: true}, Timeout: brisk})
	if dev.Attached().DeadTimeout != 0 {
		t.Errorf("the kernel waits %v", dev.Attached().DeadTimeout)
	}
	h.kill()
	r.awaitPhase(d, Reconnecting)
	if _, err := dev.WriteAt(make([]byte, 512), 0); err == nil {
		t.Error("a write succeeded without a server")
	}
	h.serve(x)
	r.awaitPhase(d, Attached)
	if _, err := dev.WriteAt(make([]byte, 512), 0); err != nil {
		t.Errorf("after the reconnect: %v", err)
	}
}

// With a limit, they fail when it is over.
func TestLimitPolicy(t *testing.T) {
	r, h, x := newRig(t), newHost(t, "unix"), newDisk("one")
	h.serve(x)
	d, dev := r.attach(&Spec{URIs: []string{h.uri()}, OnFailure: Policy{Limit: 1500 * time.Millisecond}, Timeout: brisk})
	if got := dev.Attached().DeadTimeout; got != 2*time.Second {
		t.Errorf("the kernel waits %v", got)
	}
	h.kill()
	r.awaitPhase(d, Reconnecting)
	if _, err := dev.WriteAt(make([]byte, 512), 0); err == nil {
		t.Error("a write succeeded without a server")
	}
	h.serve(x)
	r.awaitPhase(d, Attached)
	if _, err := dev.WriteAt(make([]byte, 512), 0); err != nil {
		t.Errorf("after the reconnect: %v", err)
	}
}

// A device that somebody else has detached is not attached again.
func TestTakenAway(t *testing.T) {
	r, h := newRig(t), newHost(t, "unix")
	h.serve(newDisk("one"))
	d, dev := r.attach(&Spec{URIs: []string{h.uri()}})
	if err := r.k.Open().Disconnect(r.ctx(), d.Index()); err != nil {
		t.Fatal(err)
	}
	<-d.Done()
	if d.Err() != ErrTakenAway || dev.Attached() != nil || len(r.s.Devices()) != 0 {
		t.Errorf("%v", d.Err())
	}
	if err := r.s.worker.Flush(r.ctx()); err != nil {
		t.Fatal(err)
	}
	if list, _ := States(r.dir); len(list) != 0 {
		t.Errorf("state files: %+v", list)
	}
}

// A server that accepts and dies, again and again, is not hammered.
func TestCrashLoop(t *testing.T) {
	r, h, x := newRig(t), newHost(t, "unix"), newDisk("one")
	h.serve(x)
	r.cfg.Backoff = Backoff{First: 20 * time.Millisecond, Most: 20 * time.Millisecond}
	d, _ := r.attach(&Spec{URIs: []string{h.uri()}})
	begin := time.Now()
	for n := 1; n <= 20; n++ {
		h.kill()
		h.serve(x)
		r.await(d, "a reconnect", func(st State) bool { return st.Reconnects >= n })
	}
	// Each wait is at least half of the 20 ms.
	if took := time.Since(begin); took < 19*10*time.Millisecond {
		t.Errorf("20 reconnects in %v", took)
	}
}

// What a server did not tell when the device was attached it is asked again: a disk that was
// replaced is noticed from then on.
func TestInstanceLater(t *testing.T) {
	for _, size := range []int64{0, diskSize / 2} {
		r, h := newRig(t), newHost(t, "unix")
		var dials atomic.Int64
		r.cfg.ResizeInterval = time.Millisecond
		r.cfg.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			if n := dials.Add(1); n > 1 && n < 4 {
				return nil, errors.New("a lost packet")
			}
			return new(net.Dialer).DialContext(ctx, network, address)
		}
		h.serve(newDisk("one"))
		d, _ := r.attach(&Spec{URIs: []string{h.uri()}, Timeout: calm, Size: size})
		st := r.await(d, "the instance", func(st State) bool { return st.Seen.Asked })
		if st.Seen.Instance != "one" || !st.Seen.InfoAgrees || st.Reconnects != 0 || dials.Load() < 4 {
			t.Errorf("%+v", st)
		}
		h.kill()
		h.serve(newDisk("two"))
		if st := r.awaitPhase(d, Refused); !strings.Contains(st.Reason, "another instance") {
			t.Errorf("%+v", st)
		}
	}
}

// A look at the system that fails, because memory or descriptors are short, says nothing of
// the device: it is kept on, and connected again when it can be looked at.
func TestUnknownIsNotGone(t *testing.T) {
	r, h := newRig(t), newHost(t, "tcp")
	disk := newDisk("one")
	h.serve(disk)
	driver := r.cfg.Kernel
	var short atomic.Bool
	looks := make(chan struct{})
	r.cfg.Kernel = &looking{driver, func(i kernel.Index) (*kernel.Info, error) {
		if !short.Load() {
			return driver.Info(i)
		}
		select {
		case looks <- struct{}{}:
		default:
		}
		return nil, syscall.EMFILE
	}}
	d, dev := r.attach(&Spec{URIs: []string{h.uri()}})
	short.Store(true)
	h.kill()
	h.serve(disk)
	for range 3 {
		select {
		case <-looks:
		case <-d.Done():
			t.Fatalf("given up: %v", d.Err())
		case <-time.After(hang):
			t.Fatal("nobody looks")
		}
	}
	short.Store(false)
	r.await(d, "another connection", func(st State) bool { return st.Reconnects == 1 && st.Phase == Attached })
	if alive(dev) != 1 {
		t.Errorf("%d connections", alive(dev))
	}
}

// faulty is a connection on which the negotiation breaks down.
type faulty struct{ net.Conn }

func (faulty) Read([]byte) (int, error) { panic("a fault") }

// A fault of the program that a server brings about is an error of that connection, when the
// device is attached, asked about, and connected anew.
func TestFaultyConnection(t *testing.T) {
	r, h, x := newRig(t), newHost(t, "tcp"), newDisk("one")
	var good atomic.Int64 // connections that work
	r.cfg.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := new(net.Dialer).DialContext(ctx, network, address)
		if err == nil && good.Add(-1) < 0 {
			t.Cleanup(func() { c.Close() })
			return faulty{c}, nil
		}
		return c, err
	}
	h.serve(x)
	s := r.supervisor()
	if _, err := s.Attach(r.ctx(), &Spec{URIs: []string{h.uri()}}); err == nil || !strings.Contains(err.Error(), "negotiating: a fault") {
		t.Fatalf("attach: %v", err)
	}
	good.Store(1) // that for the kernel, not that on which the instance is asked for
	d, dev := r.attach(&Spec{URIs: []string{h.uri()}, Timeout: brisk})
	if d.Status().Seen.Asked {
		t.Error("the server has told something")
	}
	l := startLoad(dev, 1)
	l.progress(t, 10)
	h.kill()
	h.serve(x)
	r.await(d, "a failed attempt", func(st State) bool { return strings.Contains(st.Reason, "negotiating: a fault") })
	good.Store(1000)
	r.awaitPhase(d, Attached)
	l.progress(t, 10)
	if err := l.end(); err != nil {
		t.Error(err)
	}
}
