package server

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"nbd.example/nbd/block"
	"nbd.example/nbd/handshake"
	"nbd.example/nbd/proto"
	"nbd.example/nbd/transmission"
)

// only returns the one connection that there is.
func only(t *testing.T, s *Server) Connection {
	t.Helper()
	list := s.Connections()
	if len(list) != 1 {
		t.Fatalf("%d connections", len(list))
	}
	return list[0]
}

func TestConnections(t *testing.T) {
	d := newDisk()
	s := newServer(t, config(row("a", d, "")), d)
	if list := s.Connections(); len(list) != 0 {
		t.Errorf("%+v", list)
	}
	before := time.Now()
	p := connect(t, s, tcpAddr("10.1.2.3"))
	c := only(t, s)
	if !c.Handshake || c.Client != "10.1.2.3:1234" || c.Since.Before(before) || c.Since.After(time.Now()) || c.Export != "" {
		t.Errorf("in the handshake: %+v", c)
	}
	u := p.use("a")
	u.works()
	c = only(t, s)
	if c.Handshake || c.Export != "a" || c.TLS != "" || c.Replies != "simple" {
		t.Errorf("in the transmission phase: %+v", c)
	}
	for end := time.Now().Add(limit); c.Stats != (transmission.Stats{Requests: 2, BytesRead: 5, BytesWritten: 5}) || c.InFlight != 0; c = only(t, s) {
		if time.Now().After(end) {
			t.Fatalf("stats %+v, %d in flight", c.Stats, c.InFlight)
		}
		runtime.Gosched()
	}
	d.set(func() { d.stall = make(chan struct{}) })
	read := make(chan error, 1)
	go func() { read <- u.do(proto.CmdRead, 0, make([]byte, 512)) }()
	wait(t, "a read", d.reading)
	if c = only(t, s); c.InFlight != 1 {
		t.Errorf("%d in flight", c.InFlight)
	}
	close(d.stall)
	if err := wait(t, "the read's end", read); err != nil {
		t.Error(err)
	}
	v := connect(t, s, nil).use("a")
	if list := s.Connections(); len(list) != 2 || list[0].ID != c.ID || list[1].ID <= c.ID {
		t.Errorf("%+v", list)
	}
	u.leave()
	v.leave()
	if list := s.Connections(); len(list) != 0 {
		t.Errorf("%+v are left", list)
	}
}

// TestDrainConnection has a read be with the disk when its connection is drained:
// it must be answered, and only then the connection end.
func TestDrainConnection(t *testing.T) {
	d := newDisk()
	s := newServer(t, config(row("a", d, "")), d)
	u := connectTCP(t, s).use("a")
	stall := make(chan struct{})
	d.set(func() { d.stall = stall })
	read := make(chan error, 1)
	go func() { read <- u.do(proto.CmdRead, 0, make([]byte, 512)) }()
	wait(t, "a read", d.reading)
	if err := s.CloseConnection(only(t, s).ID, Drain); err != nil {
		t.Fatal(err)
	}
	if c := only(t, s); !c.Closing || c.Handshake {
		t.Errorf("it does not say that it is closing: %+v", c)
	}
	select {
	case err := <-u.end:
		t.Errorf("the connection ended before the read: %v", err)
	default:
	}
	close(stall)
	if err := wait(t, "the read's end", read); err != nil {
		t.Errorf("the read: %v", err)
	}
	if err := wait(t, "the connection's end", u.end); !errors.Is(err, errDismissed) {
		t.Errorf("ServeConn: %v", err)
	}
	if err := u.do(proto.CmdRead, 0, make([]byte, 512)); err == nil {
		t.Error("the connection still serves")
	}
}

// TestLingering: a connection that the server has ended, and that waits for its client to
// close, does not look as if it was served.
func TestLingering(t *testing.T) {
	d := newDisk()
	x := row("a", d, "")
	x.IdleTimeout = time.Millisecond
	s := newServer(t, config(x), d)
	p := connectTCP(t, s)
	if _, err := p.c.Go(testContext(t), "a"); err != nil {
		t.Fatal(err)
	}
	for c := only(t, s); !c.Closing; c = only(t, s) {
		runtime.Gosched()
	}
	p.nc.Close()
	if err := wait(t, "the connection's end", p.end); !errors.Is(err, errIdle) {
		t.Errorf("ServeConn: %v", err)
	}
}

// TestProcess: of a client on a unix socket it is known who it is.
func TestProcess(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("only Linux tells it")
	}
	dir, err := os.MkdirTemp("", "nbd") // short enough for a socket
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	here, err := net.Dial("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	there, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	var log logBuffer
	d := newDisk()
	cfg := config(row("a", d, ""))
	cfg.Logger = log.logger()
	s := newServer(t, cfg, d)
	u := connectOver(t, s, here, there).use("a")
	if err := u.do(proto.CmdRead, 0, make([]byte, 512)); err != nil { // who is served has been logged
		t.Fatal(err)
	}
	if p := only(t, s).Process; p == nil || p.PID != os.Getpid() || int(p.UID) != os.Getuid() || int(p.GID) != os.Getgid() {
		t.Errorf("%+v", p)
	}
	want := fmt.Sprintf("pid=%d uid=%d gid=%d", os.Getpid(), os.Getuid(), os.Getgid())
	if lines := log.lines("client connected"); len(lines) != 1 || !strings.Contains(lines[0], want) {
		t.Errorf("%q, want %s", lines, want)
	}
	u.leave()
	v := connectTCP(t, s).use("a")
	if p := only(t, s).Process; p != nil {
		t.Errorf("by TCP: %+v", p)
	}
	v.leave()
}

// TestCutConnection closes a connection whose client does not take its answers.
func TestCutConnection(t *testing.T) {
	d := newDisk()
	s := newServer(t, config(row("a", d, "")), d)
	p := connectTCP(t, s)
	a, err := p.c.Go(testContext(t), "a")
	if err != nil {
		t.Fatal(err)
	}
	go func() { // asks and takes nothing
		q := proto.AppendRequest(nil, &proto.Request{Command: proto.CmdRead, Length: 1 << 20})
		for {
			if _, err := a.Conn.Write(q); err != nil {
				return
			}
		}
	}()
	for end := time.Now().Add(limit); only(t, s).InFlight == 0; runtime.Gosched() {
		if time.Now().After(end) {
			t.Fatal("no request arrives")
		}
	}
	if err := s.CloseConnection(only(t, s).ID, Cut); err != nil {
		t.Fatal(err)
	}
	if err := wait(t, "the connection's end", p.end); !errors.Is(err, errDismissed) {
		t.Errorf("ServeConn: %v", err)
	}
}

func TestCloseHandshake(t *testing.T) {
	d := newDisk()
	s := newServer(t, config(row("a", d, "")), d)
	for _, how := range []How{Drain, Cut} {
		p := connect(t, s, nil)
		if err := s.CloseConnection(only(t, s).ID, how); err != nil {
			t.Fatal(err)
		}
		wait(t, "the connection's end", p.end)
		if _, err := p.nc.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
			t.Errorf("the client reads: %v", err)
		}
	}
	if err := s.CloseConnection(1, Drain); !errors.Is(err, ErrNoConnection) {
		t.Errorf("closed twice: %v", err)
	}
}

// TestEvictWhoComes: a client that was let in before, and is in the transmission phase only
// behind, is ended like the others.
func TestEvictWhoComes(t *testing.T) {
	d := newDisk()
	x := row("a", d, "")
	x.Private = true
	var s *Server
	for _, how := range []How{Drain, Cut} {
		x.Open = func(ctx context.Context, c Client) (*block.Device, error) {
			if err := s.Evict(ctx, "a", how); err != nil {
				t.Error(err)
			}
			return d.open(ctx, c)
		}
		s = newServer(t, config(x), d)
		p := connect(t, s, nil)
		p.c.Go(testContext(t), "a") // whatever it is answered
		if err := wait(t, "the connection's end", p.end); !errors.Is(err, errDismissed) {
			t.Errorf("ServeConn: %v", err)
		}
	}
}

// states lists the exports' names and states.
func states(s *Server) (text string) {
	for _, x := range s.Exports() {
		text += fmt.Sprintf("%s %s %d %d; ", x.Export.Name, x.State, x.Clients, x.Size)
	}
	return text
}

func wantStates(t *testing.T, s *Server, want string) {
	t.Helper()
	if got := states(s); got != want {
		t.Errorf("the exports are %q, want %q", got, want)
	}
}

// TestEditLeavesOthers adds, changes and removes one export while another waits
// for its clients and a third is broken: nobody may touch these.
func TestEditLeavesOthers(t *testing.T) {
	a, b, c := newDisk(), newDisk(), newDisk()
	own := row("own", a, "")
	own.Private = true
	s := newServer(t, config(row("pending", a, "1"), row("broken", b, "1"), own), a, b, c)
	u := connect(t, s, nil).use("pending")
	v := connect(t, s, nil).use("broken")
	if _, err := s.ChangeExport(row("pending", a, "2")); err != nil {
		t.Fatal(err)
	}
	b.set(func() { b.flush = errors.New("broken") })
	if err := v.do(proto.CmdFlush, 0, nil); err == nil {
		t.Fatal("the flush succeeds")
	}
	opened := func() string {
		_, x := a.counts()
		_, y := b.counts()
		return fmt.Sprint(x, y)
	}
	before := opened()
	others := "pending pending 1 1048576; broken broken 1 1048576; own serving 0 -1; "
	wantStates(t, s, others)
	if _, err := s.AddExport(row("c", c, "1")); err != nil {
		t.Fatal(err)
	}
	wantStates(t, s, others+"c serving 0 1048576; ")
	if report, err := s.ChangeExport(row("c", c, "2")); err != nil || len(report.Changed) != 1 {
		t.Errorf("%+v, %v", report, err)
	}
	c.expect(t, 1, 2)
	if err := s.SetTLS(NoTLS, nil); err != nil {
		t.Error(err)
	}
	for _, bad := range []error{
		func() error { _, err := s.AddExport(row("c", c, "1")); return err }(),
		func() error { _, err := s.ChangeExport(row("d", c, "1")); return err }(),
		func() error { _, err := s.RemoveExport("d"); return err }(),
		func() error { _, err := s.AddExport(&Export{Name: "x"}); return err }(),
		s.SetTLS(Forced, nil),
	} {
		if bad == nil {
			t.Error("a wrong request was accepted")
		}
	}
	wantStates(t, s, others+"c serving 0 1048576; ")
	if _, err := s.RemoveExport("c"); err != nil {
		t.Error(err)
	}
	c.expect(t, 0, 2)
	wantStates(t, s, others)
	if opened() != before {
		t.Errorf("devices of others were opened: %s, before %s", opened(), before)
	}
	// A change that changes nothing heals.
	b.set(func() { b.flush = nil })
	if report, err := s.ChangeExport(row("broken", b, "1")); err != nil || len(report.Healed) != 1 || len(report.Pending) != 1 {
		t.Errorf("%+v, %v", report, err)
	}
	if err := s.Evict(testContext(t), "broken", Cut); err != nil {
		t.Error(err)
	}
	wantStates(t, s, "pending pending 1 1048576; broken serving 0 1048576; own serving 0 -1; ")
	wait(t, "the end of the connection that was cut", v.end)
	u.leave()
}

// TestRemoveStays removes an export whose client stays, and takes it back.
func TestRemoveStays(t *testing.T) {
	d := newDisk()
	s := newServer(t, config(row("a", d, "1")), d)
	u := connect(t, s, nil).use("a")
	if report, err := s.RemoveExport("a"); err != nil || len(report.Removed) != 1 {
		t.Fatal(err)
	}
	wantStates(t, s, "a removed 1 1048576; ")
	u.works()
	if _, err := s.RemoveExport("a"); !errors.Is(err, ErrNoExport) {
		t.Errorf("removed twice: %v", err)
	}
	if report, err := s.AddExport(row("a", d, "2")); err != nil || len(report.Pending) != 1 {
		t.Errorf("%+v, %v", report, err)
	}
	u.leave()
	connect(t, s, nil).use("a").leave()
}

// removeNow removes an export with its clients.
func removeNow(t *testing.T, s *Server, name string, how How) error {
	if _, err := s.RemoveExport(name); err != nil {
		return err
	}
	return s.Evict(testContext(t), name, how)
}

// changeNow changes an export, and ends its connections.
func changeNow(t *testing.T, s *Server, x *Export, how How) error {
	if _, err := s.ChangeExport(x); err != nil {
		return err
	}
	return s.Evict(testContext(t), x.Name, how)
}

// TestRemoveDrains wants the device to be closed when the call returns.
func TestRemoveDrains(t *testing.T) {
	for _, how := range []How{Drain, Cut} {
		d := newDisk()
		s := newServer(t, config(row("a", d, "1"), row("b", d, "1")), d)
		u, v := connectTCP(t, s).use("a"), connectTCP(t, s).use("b")
		u.works()
		if err := removeNow(t, s, "a", how); err != nil {
			t.Fatal(err)
		}
		d.expect(t, 1, 2)
		wantStates(t, s, "b serving 1 1048576; ")
		if err := wait(t, "the connection's end", u.end); !errors.Is(err, errDismissed) {
			t.Errorf("ServeConn: %v", err)
		}
		v.works()
		v.leave()
	}
}

// TestRemoveGivesUp has a client that does not go.
func TestRemoveGivesUp(t *testing.T) {
	d := newDisk()
	s := newServer(t, config(row("a", d, "1")), d)
	u := connectTCP(t, s).use("a")
	stall := make(chan struct{})
	d.set(func() { d.stall = stall })
	go u.do(proto.CmdRead, 0, make([]byte, 512))
	wait(t, "a read", d.reading)
	ctx, cancel := context.WithCancelCause(context.Background())
	cancel(errors.New("enough"))
	if _, err := s.RemoveExport("a"); err != nil {
		t.Fatal(err)
	}
	if err := s.Evict(ctx, "a", Drain); err == nil || !errors.Is(err, context.Cause(ctx)) {
		t.Errorf("Evict: %v", err)
	}
	wantStates(t, s, "a removed 1 1048576; ")
	close(stall)
	wait(t, "the connection's end", u.end)
	wait(t, "the device's end", d.closed)
}

// TestChangeDrains wants the new device when the call returns.
func TestChangeDrains(t *testing.T) {
	d, e := newDisk(), newDisk()
	s := newServer(t, config(row("a", d, "1")), d, e)
	u := connectTCP(t, s).use("a")
	u.works()
	if err := changeNow(t, s, row("a", e, "2"), Drain); err != nil {
		t.Fatal(err)
	}
	d.expect(t, 0, 1)
	e.expect(t, 1, 2) // once to try
	wait(t, "the connection's end", u.end)
	// A policy alone is changed at once, and the clients go, too.
	v := connectTCP(t, s).use("a")
	x := row("a", e, "2")
	x.ReadOnly = true
	if err := changeNow(t, s, x, Drain); err != nil {
		t.Fatal(err)
	}
	wait(t, "the connection's end", v.end)
	e.expect(t, 1, 2) // once to try
}

// TestChangeFails has the new device be there when the change is tried, and not
// any more when it is made.
func TestChangeFails(t *testing.T) {
	d, e := newDisk(), newDisk()
	s := newServer(t, config(row("a", d, "1")), d, e)
	u := connectTCP(t, s).use("a")
	if _, err := s.ChangeExport(row("a", e, "2")); err != nil {
		t.Fatal(err)
	}
	e.set(func() { e.fail = errors.New("it is gone") })
	if err := s.Evict(testContext(t), "a", Drain); !errors.Is(err, ErrNotChanged) {
		t.Errorf("Evict: %v", err)
	}
	wait(t, "the connection's end", u.end)
	wantStates(t, s, "a serving 0 1048576; ")
	connect(t, s, nil).use("a").leave()
}

// TestChangeSuperseded changes an export twice while it has a client. Whoever waits for
// the first change learns that it did not come, not that it failed.
func TestChangeSuperseded(t *testing.T) {
	for _, fails := range []bool{false, true} {
		d, e, f := newDisk(), newDisk(), newDisk()
		s := newServer(t, config(row("a", d, "1")), d, e, f)
		u := connectTCP(t, s).use("a")
		change := func(x *Export) <-chan error {
			if _, err := s.ChangeExport(x); err != nil {
				t.Fatal(err)
			}
			evictions := func() int {
				s.mu.Lock()
				defer s.mu.Unlock()
				return s.exports["a"].evictions
			}
			before, done := evictions(), make(chan error, 1)
			go func() { done <- s.Evict(testContext(t), "a", Drain) }()
			for evictions() == before {
				runtime.Gosched()
			}
			return done
		}
		// The client's request keeps it.
		stall := make(chan struct{})
		d.set(func() { d.stall = stall })
		read := make(chan error, 1)
		go func() { read <- u.do(proto.CmdRead, 0, make([]byte, 5)) }()
		wait(t, "the request", d.reading)
		first := change(row("a", e, "2"))
		second := change(row("a", f, "3"))
		f.set(func() {
			if fails {
				f.fail = errors.New("it is gone")
			}
		})
		d.set(func() { d.stall = nil })
		close(stall)
		if err := wait(t, "the answer", read); err != nil {
			t.Error(err)
		}
		if err := wait(t, "the first change", first); !errors.Is(err, ErrSuperseded) {
			t.Errorf("the first change: %v", err)
		}
		if err := wait(t, "the second change", second); fails != errors.Is(err, ErrNotChanged) || !fails && err != nil {
			t.Errorf("the second change: %v", err)
		}
		wait(t, "the connection's end", u.end)
		wantStates(t, s, "a serving 0 1048576; ")
	}
}

// heard is a Tap that counts.
type heard struct{ n atomic.Int64 }

func (h *heard) Payloads() bool { return false }
func (h *heard) Begun(proto.Request, []byte, interface{ Release() }) bool {
	h.n.Add(1)
	return false
}
func (h *heard) Ended(uint64, proto.Errno)                   {}
func (h *heard) Answered(proto.Request, []byte, proto.Errno) { h.n.Add(1) }

// TestExportTap gives an export a tap, and takes it away again.
func TestExportTap(t *testing.T) {
	d, h := newDisk(), new(heard)
	x := row("a", d, "1")
	x.Tap = h
	s := newServer(t, config(x), d)
	u := connect(t, s, nil).use("a")
	u.works()
	u.leave()
	if n := h.n.Load(); n != 3 {
		t.Errorf("%d requests were told, want 3", n)
	}
	reloadTo(t, s, Report{Kept: []string{"a"}}, x)
	reloadTo(t, s, Report{Changed: []string{"a"}}, row("a", d, "1"))
	u = connect(t, s, nil).use("a")
	u.works()
	u.leave()
	if n := h.n.Load(); n != 3 {
		t.Errorf("%d requests were told, want 3", n)
	}
}

// TestClosingServer wants nothing to be changed any more.
func TestClosingServer(t *testing.T) {
	d := newDisk()
	s := newServer(t, config(row("a", d, "1")), d)
	if err := s.Shutdown(testContext(t)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.AddExport(row("b", d, "1")); !errors.Is(err, ErrClosed) {
		t.Errorf("AddExport: %v", err)
	}
	if _, err := s.RemoveExport("a"); !errors.Is(err, ErrClosed) {
		t.Errorf("RemoveExport: %v", err)
	}
}

// TestControlUnderLoad has clients write and read while their connections are
// drained, other exports come and go, and theirs is changed. Every client comes back
// when its connection ends, and sends again what was not answered: then nothing may be
// missing, and nothing be answered that was not done.
func TestControlUnderLoad(t *testing.T) {
	const clients, rounds = 4, 60
	d, other := newDisk(), newDisk()
	s := newServer(t, config(row("a", d, "1")), d, other)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go s.Serve(l)
	var stop atomic.Bool
	var done sync.WaitGroup
	var answered atomic.Int64
	for i := range uint64(clients) {
		done.Go(func() { persist(t, l.Addr().String(), i<<16, &stop, &answered) })
	}
	for i := range rounds {
		// Each round waits until the clients have got on.
		for before := answered.Load(); answered.Load() < before+20 && !t.Failed(); runtime.Gosched() {
		}
		var err error
		switch i % 6 {
		case 0:
			_, err = s.AddExport(row("other", other, "1"))
		case 1:
			err = changeNow(t, s, row("other", other, fmt.Sprint(i)), Cut)
		case 2:
			err = removeNow(t, s, "other", Drain)
		case 3:
			err = changeNow(t, s, row("a", d, fmt.Sprint(i)), Drain)
		case 4:
			for _, c := range s.Connections() {
				if err := s.CloseConnection(c.ID, Drain); err != nil && !errors.Is(err, ErrNoConnection) {
					t.Error(err)
				}
			}
		case 5:
			err = s.SetTLS(NoTLS, &tls.Config{})
		}
		if err != nil {
			t.Errorf("round %d: %v", i, err)
		}
	}
	stop.Store(true)
	done.Wait()
}

// persist writes numbers to 64 KiB of an export from off on, and reads them, over
// one connection after the other.
func persist(t *testing.T, addr string, off uint64, stop *atomic.Bool, answered *atomic.Int64) {
	page, got := make([]byte, 4096), make([]byte, 4096)
	n := uint64(0)
	for !stop.Load() && !t.Failed() {
		u, err := dial(t, addr, "a")
		if err != nil { // refused while the export is being changed
			runtime.Gosched()
			continue
		}
		for !stop.Load() {
			at := off + n%16*4096
			binary.BigEndian.PutUint64(page, n+1)
			binary.BigEndian.PutUint64(page[4088:], n+1)
			if u.Do(t.Context(), &transmission.Call{Command: proto.CmdWrite, Offset: at, Data: page}) != nil {
				break
			}
			answered.Add(1)
			if u.Do(t.Context(), &transmission.Call{Command: proto.CmdRead, Offset: at, Data: got}) != nil {
				break // and it is written again, which changes nothing
			}
			if !bytes.Equal(got, page) {
				t.Errorf("write %d was answered, and is not there: %x", n, got[:8])
				return
			}
			n++
		}
		u.Close()
	}
}

// dial begins to use an export.
func dial(t *testing.T, addr, export string) (*transmission.Demux, error) {
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	ctx := testContext(t)
	c, err := handshake.NewClient(ctx, nc)
	if err != nil {
		nc.Close()
		return nil, err
	}
	a, err := c.Go(ctx, export)
	if err != nil {
		nc.Close()
		return nil, err
	}
	return transmission.NewDemux(a.Conn, &transmission.DemuxConfig{Early: a.Early}), nil
}

// TestCutKeepsOrder: what a connection had sent when it was cut does not undo what
// another writes after that.
func TestCutKeepsOrder(t *testing.T) {
	d := newDisk()
	s := newServer(t, config(row("a", d, "")), d)
	p := connectTCP(t, s)
	a, err := p.c.Go(testContext(t), "a")
	if err != nil {
		t.Fatal(err)
	}
	stall := make(chan struct{})
	d.set(func() { d.stall = stall })
	go func() { // more than the server reads while its disk does not answer
		q := proto.AppendRequest(nil, &proto.Request{Command: proto.CmdRead, Length: 512})
		for range 5000 {
			if _, err := a.Conn.Write(q); err != nil {
				return
			}
		}
		w := proto.AppendRequest(nil, &proto.Request{Command: proto.CmdWrite, Length: 512})
		a.Conn.Write(append(w, bytes.Repeat([]byte{1}, 512)...))
	}()
	wait(t, "a read", d.reading)
	if err := s.CloseConnection(only(t, s).ID, Cut); err != nil {
		t.Fatal(err)
	}
	u := connectTCP(t, s).use("a")
	if err := u.do(proto.CmdWrite, 0, bytes.Repeat([]byte{2}, 512)); err != nil {
		t.Fatal(err)
	}
	close(stall)
	if err := wait(t, "the connection's end", p.end); !errors.Is(err, errDismissed) {
		t.Errorf("ServeConn: %v", err)
	}
	got := make([]byte, 512)
	if err := u.do(proto.CmdRead, 0, got); err != nil || !bytes.Equal(got, bytes.Repeat([]byte{2}, 512)) {
		t.Errorf("%v, %d", err, got[0])
	}
}
