package supervise

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"nbd.example/nbd/block"
	"nbd.example/nbd/kernel"
	"nbd.example/nbd/server"
)

// localServer serves a disk over socket pairs, as programs do.
type localServer struct {
	t  *testing.T
	s  *server.Server
	wg sync.WaitGroup
}

func newLocal(t *testing.T, x *disk, readOnly bool) (*localServer, error) {
	e := x.export()
	e.Aliases, e.ReadOnly = []string{""}, readOnly
	s, err := server.New(server.Config{Exports: []*server.Export{e}})
	return &localServer{t: t, s: s}, err
}

func (l *localServer) Dial(ctx context.Context) (net.Conn, error) {
	a, b := socketPair(l.t)
	defer a.Close()
	defer b.Close()
	near, err := net.FileConn(a)
	if err != nil {
		return nil, err
	}
	far, err := net.FileConn(b)
	if err != nil {
		near.Close()
		return nil, err
	}
	l.wg.Go(func() { l.s.ServeConn(context.Background(), far) })
	return near, nil
}

func (l *localServer) Close() error {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	err := l.s.Shutdown(ctx)
	l.wg.Wait()
	return err
}

func TestLocal(t *testing.T) {
	r, x := newRig(t), newDisk("one")
	r.cfg.Local = func(_ context.Context, chain string, readOnly bool) (Local, error) {
		if chain != "file:/disk" {
			return nil, fmt.Errorf("no such chain")
		}
		return newLocal(t, x, readOnly)
	}
	d, dev := r.attach(&Spec{Serve: "file:/disk", Connections: 2, Timeout: brisk})
	if st := d.Status(); st.Identifier != "serve:file:/disk" || len(st.Connections) != 2 || st.Connections[0].Relay {
		t.Errorf("%+v", st)
	}
	l := startLoad(dev, 2)
	l.progress(t, 50)
	if err := r.s.Reexec(os.Args[0], nil, nil); err == nil || !strings.Contains(err.Error(), "serves") {
		t.Errorf("%v", err)
	}
	r.s.crash()
	d = r.adoptOne(d.Index())
	r.await(d, "a reconnect", func(st State) bool { return st.Phase == Attached && st.Reconnects >= 2 })
	l.progress(t, 50)
	if err := l.end(); err != nil {
		t.Error(err)
	}
	if err := d.Detach(r.ctx(), false); err != nil {
		t.Error(err)
	}
	if _, err := r.s.Attach(r.ctx(), &Spec{Serve: "file:/other"}); err == nil || !strings.Contains(err.Error(), "no such chain") {
		t.Errorf("%v", err)
	}
}

// stuck is a disk whose writes wait while it is shut.
type stuck struct {
	opened
	gate *sync.RWMutex
}

func (s *stuck) WriteAt(ctx context.Context, p []byte, off int64, f block.Flags) error {
	s.gate.RLock()
	defer s.gate.RUnlock()
	return s.opened.WriteAt(ctx, p, off, f)
}

// A server that hangs for longer than the request timeout is connected to anew, and
// nothing is lost or done out of order when it goes on.
func TestHungServer(t *testing.T) {
	for _, n := range []int{1, 4} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			r, h, x := newRig(t), newHost(t, "tcp"), newDisk("one")
			var gate sync.RWMutex
			e := x.export()
			e.Open = func(context.Context, server.Client) (*block.Device, error) {
				return block.New(&stuck{opened{x, diskSize}, &gate})
			}
			h.start(server.Config{Exports: []*server.Export{e}})
			d, dev := r.attach(&Spec{URIs: []string{h.uri()}, Connections: n, Timeout: time.Second})
			l := startLoad(dev, 4)
			for range 3 {
				l.progress(t, 20)
				gate.Lock()
				r.await(d, "a dead connection", func(st State) bool { return st.Phase != Attached })
				gate.Unlock()
				r.awaitPhase(d, Attached)
			}
			l.progress(t, 20)
			if err := l.end(); err != nil {
				t.Error(err)
			}
			if dev.Resent() == 0 {
				t.Error("no request was sent again: nothing was tested")
			}
		})
	}
}

// Two devices of one supervisor do not disturb each other, and what is closed leaves
// nothing.
func TestMany(t *testing.T) {
	r, x := newRig(t), newDisk("one")
	s := r.supervisor()
	var hosts []*host
	var loads []*load
	var devices []*Device
	for i := range 8 {
		h := newHost(t, "unix")
		y := x
		if i > 0 {
			y = newDisk(fmt.Sprint(i))
		}
		h.serve(y)
		spec := &Spec{URIs: []string{h.uri()}}
		if i == 0 {
			spec.Timeout = brisk
		}
		d, dev := r.attach(spec)
		hosts, devices, loads = append(hosts, h), append(devices, d), append(loads, startLoad(dev, 1))
	}
	if len(s.Devices()) != 8 {
		t.Errorf("%d devices", len(s.Devices()))
	}
	hosts[0].kill()
	r.awaitPhase(devices[0], Reconnecting)
	for _, l := range loads[1:] {
		l.progress(t, 20)
	}
	hosts[0].serve(x)
	r.awaitPhase(devices[0], Attached)
	for i, l := range loads {
		l.progress(t, 5)
		if err := l.end(); err != nil {
			t.Errorf("device %d: %v", i, err)
		}
		if st := devices[i].Status(); i > 0 && st.Reconnects != 0 {
			t.Errorf("device %d: %+v", i, st)
		}
	}
	r.k.Device(devices[3].Index()).SetInfo(func(i *kernel.Info) { i.Swap = true })
	err := s.Close(r.ctx(), false)
	var busy *BusyError
	if !errors.As(err, &busy) || busy.Info.Index != devices[3].Index() {
		t.Errorf("close: %v", err)
	}
	for i, d := range devices {
		if attached := r.k.Device(d.Index()).Attached() != nil; attached != (i == 3) {
			t.Errorf("device %d is attached: %v", i, attached)
		}
	}
}
