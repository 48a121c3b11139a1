package server

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"nbd.example/nbd/block"
	"nbd.example/nbd/handshake"
	"nbd.example/nbd/proto"
)

// steps notes what happens, in order.
type steps struct {
	mu  sync.Mutex
	all []string
}

func (s *steps) add(format string, a ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all = append(s.all, fmt.Sprintf(format, a...))
}

func (s *steps) take() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := s.all
	s.all = nil
	return all
}

// noted is an export by the client's address, with all that happens to it noted.
func noted(d *disk, s *steps) *Export {
	key := func(c Client) string {
		host, _, _ := strings.Cut(c.Addr.String(), ":")
		return host
	}
	return &Export{
		Name: "disk", Private: true, Share: key,
		Begin: func(_ context.Context, c Client) (func(), error) {
			s.add("begin %s", key(c))
			return func() {
				holders, _ := d.counts()
				s.add("end %s, %d open", key(c), holders)
			}, nil
		},
		Open: func(ctx context.Context, c Client) (*block.Device, error) {
			s.add("open %s", key(c))
			return d.open(ctx, c)
		},
	}
}

// TestShare: connections with one key share a device, which is opened behind
// Begin, and closed before the function that Begin returned.
func TestShare(t *testing.T) {
	d, st := newDisk(), &steps{}
	s := newServer(t, Config{Exports: []*Export{noted(d, st)}}, d)
	one := connect(t, s, tcpAddr("10.0.0.1")).use("disk")
	if got, want := st.take(), []string{"begin 10.0.0.1", "open 10.0.0.1"}; !slices.Equal(got, want) {
		t.Errorf("the first: %q, want %q", got, want)
	}
	if one.a.Export.Flags&proto.FlagCanMultiConn == 0 {
		t.Error("connections share a device, but MULTI_CONN is not offered")
	}
	again := connect(t, s, tcpAddr("10.0.0.1")).use("disk")
	other := connect(t, s, tcpAddr("10.0.0.2")).use("disk")
	if got, want := st.take(), []string{"begin 10.0.0.1", "begin 10.0.0.2", "open 10.0.0.2"}; !slices.Equal(got, want) {
		t.Errorf("two more: %q, want %q", got, want)
	}
	one.works()
	again.works()
	other.works()
	one.leave()
	if got, want := st.take(), []string{"end 10.0.0.1, 2 open"}; !slices.Equal(got, want) {
		t.Errorf("one left: %q, want %q", got, want)
	}
	again.leave()
	if got, want := st.take(), []string{"end 10.0.0.1, 1 open"}; !slices.Equal(got, want) {
		t.Errorf("the last of its kind left: %q, want %q", got, want)
	}
	connect(t, s, tcpAddr("10.0.0.1")).use("disk").leave()
	if got, want := st.take(), []string{"begin 10.0.0.1", "open 10.0.0.1", "end 10.0.0.1, 1 open"}; !slices.Equal(got, want) {
		t.Errorf("a new one: %q, want %q", got, want)
	}
	other.leave()
}

// slowClose is a disk that is closed when somebody allows it.
type slowClose struct {
	diskFile
	begins, goOn chan struct{}
}

func (f *slowClose) Close() error {
	f.begins <- struct{}{}
	<-f.goOn
	return f.diskFile.Close()
}

// TestShareClosing: a client that comes while the device of its kind is being closed gets
// another one, when that is done.
func TestShareClosing(t *testing.T) {
	d, begins, goOn := newDisk(), make(chan struct{}, 10), make(chan struct{})
	s := newServer(t, Config{Exports: []*Export{{
		Name: "disk", Private: true, Share: func(Client) string { return "" },
		Open: func(context.Context, Client) (*block.Device, error) {
			d.set(func() { d.holders, d.opened = d.holders+1, d.opened+1 })
			return block.New(&slowClose{diskFile{d}, begins, goOn})
		},
	}}}, d)
	u := connect(t, s, nil).use("disk")
	u.nc.Close()
	wait(t, "the device is being closed", begins)
	next := connect(t, s, nil)
	used := make(chan error, 1)
	go func() { _, err := next.c.Go(testContext(t), "disk"); used <- err }()
	for end := time.Now().Add(limit); s.Exports()[0].Clients < 2; runtime.Gosched() {
		if time.Now().After(end) {
			t.Fatal("the next client was not let in")
		}
	}
	close(goOn)
	if err := wait(t, "the next client", used); err != nil {
		t.Fatal(err)
	}
	if holders, opened := d.counts(); holders != 1 || opened != 2 {
		t.Errorf("it is open %d times, and was %d times; want 1 and 2", holders, opened)
	}
	next.nc.Close()
	wait(t, "the end of the next client", next.end)
}

// TestBeginRefuses: an error of Begin refuses the client, and nothing is opened.
// One of Open does, too, and then what Begin has done is undone.
func TestBeginRefuses(t *testing.T) {
	d, st := newDisk(), &steps{}
	x := noted(d, st)
	begin, fail := x.Begin, errors.New("the command failed")
	x.Begin = func(ctx context.Context, c Client) (func(), error) {
		if fail != nil {
			return nil, fail
		}
		return begin(ctx, c)
	}
	panics := *x
	panics.Name, panics.Begin = "panics", func(context.Context, Client) (func(), error) { panic("boom") }
	var log logBuffer
	s := newServer(t, Config{Exports: []*Export{x, &panics}, Logger: log.logger()}, d)
	p := connect(t, s, tcpAddr("10.0.0.1"))
	p.refused("disk", handshake.ErrUnknown)
	p.refused("panics", handshake.ErrUnknown)
	if got := st.take(); len(got) > 0 {
		t.Errorf("after a refusal: %q", got)
	}
	if lines := log.lines("cannot open an export"); len(lines) != 2 || !strings.Contains(lines[0], "the command failed") || !strings.Contains(lines[1], "boom") {
		t.Errorf("the log: %q", lines)
	}
	fail = nil
	d.set(func() { d.fail = errors.New("no such file") })
	p.refused("disk", handshake.ErrUnknown)
	if got, want := st.take(), []string{"begin 10.0.0.1", "open 10.0.0.1", "end 10.0.0.1, 0 open"}; !slices.Equal(got, want) {
		t.Errorf("the device cannot be opened: %q, want %q", got, want)
	}
	d.set(func() { d.fail = nil })
	u := p.use("disk")
	u.works()
	u.leave()
}

// TestShareCrowd: many connections come and go at once, and no device is open
// twice under one key, nor used after it was closed.
func TestShareCrowd(t *testing.T) {
	d := newDisk()
	d.exclusive = true
	s := newServer(t, Config{Exports: []*Export{{
		Name: "disk", Private: true, Open: d.open, Share: func(Client) string { return "" },
	}}}, d)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 25 {
				u := connectTCP(t, s).use("disk")
				if err := u.do(proto.CmdRead, 0, make([]byte, 512)); err != nil {
					t.Error(err)
				}
				u.leave()
			}
		})
	}
	wg.Wait()
}

// TestPreparationTakesTime: while an export is being prepared, the client's time
// does not run.
func TestPreparationTakesTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDisk()
		s := newServer(t, Config{HandshakeTimeout: 5 * time.Second, Exports: []*Export{
			{Name: "disk", Open: d.open, Begin: func(context.Context, Client) (func(), error) {
				time.Sleep(20 * time.Second)
				return nil, nil
			}},
		}}, d)
		silent := connect(t, s, nil)
		connect(t, s, nil).use("disk").leave()
		if err := wait(t, "the silent client's end", silent.end); err == nil {
			t.Error("the silent client was not thrown out")
		}
	})
}

// TestIdleTimeout: an idle connection is ended; one that asks, or waits for an
// answer, is not.
func TestIdleTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDisk()
		s := newServer(t, Config{Exports: []*Export{{Name: "disk", Open: d.open, IdleTimeout: 4 * time.Second}}}, d)
		busy, waiting, idle := connect(t, s, nil).use("disk"), connect(t, s, nil).use("disk"), connect(t, s, nil).use("disk")
		stall, answer := make(chan struct{}), make(chan error, 1)
		d.set(func() { d.stall = stall })
		go func() { answer <- waiting.do(proto.CmdRead, 0, make([]byte, 512)) }()
		wait(t, "the read", d.reading)
		d.set(func() { d.stall = nil })
		for range 5 {
			if err := busy.do(proto.CmdRead, 0, make([]byte, 512)); err != nil {
				t.Error(err)
			}
			time.Sleep(3 * time.Second)
		}
		if err := wait(t, "the idle connection's end", idle.end); !errors.Is(err, errIdle) {
			t.Errorf("the idle connection ended with %v, want %v", err, errIdle)
		}
		for name, u := range map[string]*user{"busy": busy, "waiting": waiting} {
			select {
			case err := <-u.end:
				t.Errorf("the %s connection ended: %v", name, err)
			default:
			}
		}
		close(stall)
		if err := wait(t, "the answer", answer); err != nil {
			t.Errorf("the read that took long: %v", err)
		}
		for name, u := range map[string]*user{"busy": busy, "waiting": waiting} {
			if err := wait(t, "its end", u.end); !errors.Is(err, errIdle) {
				t.Errorf("%s: then it ended with %v, want %v", name, err, errIdle)
			}
		}
	})
}

// TestBrokenInstance: an export whose devices are opened for clients tells when one of them has
// broken down, and opens it anew when it is told to, behind the clients that have it.
func TestBrokenInstance(t *testing.T) {
	d, st := newDisk(), &steps{}
	s := newServer(t, Config{Exports: []*Export{noted(d, st)}}, d)
	one, two := tcpAddr("10.0.0.1"), tcpAddr("10.0.0.2")
	u := connect(t, s, one).use("disk")
	d.set(func() { d.flush = errors.New("broken") })
	if u.do(proto.CmdFlush, 0, nil) == nil {
		t.Fatal("the flush succeeds")
	}
	d.set(func() { d.flush = nil })
	wantStates(t, s, "disk broken 1 -1; ")
	again := connect(t, s, one).use("disk") // to read
	if again.do(proto.CmdWrite, 0, make([]byte, 512)) == nil {
		t.Error("a broken device is written")
	}
	other := connect(t, s, two).use("disk")
	other.works()
	report, err := s.ChangeExport(noted(d, st))
	if err != nil || len(report.Healed) != 1 || len(report.Pending) != 1 {
		t.Errorf("%+v, %v", report, err)
	}
	wantStates(t, s, "disk pending 3 -1; ")
	st.take()
	connect(t, s, one).refused("disk", handshake.ErrPolicy)
	if got := st.take(); len(got) > 0 {
		t.Errorf("for a client that is refused: %q", got)
	}
	connect(t, s, two).use("disk").leave() // whose device is whole
	u.leave()
	connect(t, s, one).refused("disk", handshake.ErrPolicy)
	// Evict waits until the device is closed.
	if err := s.Evict(testContext(t), "disk", Drain); err != nil {
		t.Error(err)
	}
	wait(t, "the end of the connection to the broken device", again.end)
	wait(t, "the end of the other connection", other.end)
	v := connect(t, s, one).use("disk")
	v.works()
	wantStates(t, s, "disk serving 1 -1; ")
	v.leave()
}
