package server

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"strings"
	"sync"
	"syscall"
	"testing"

	"nbd.example/nbd/block"
	"nbd.example/nbd/handshake"
	"nbd.example/nbd/proto"
)

// config makes a configuration of exports.
func config(exports ...*Export) Config { return Config{Exports: exports, AllowList: true} }

func row(name string, d *disk, settings string) *Export {
	return &Export{Name: name, Open: d.open, Settings: settings}
}

func reloadTo(t *testing.T, s *Server, want Report, exports ...*Export) {
	t.Helper()
	r, err := s.Reload(config(exports...))
	if err != nil {
		t.Fatalf("Reload: %v", err)
	}
	if !reflect.DeepEqual(r, want) {
		t.Fatalf("report %+v, want %+v", r, want)
	}
}

// expect checks that a disk is open so many times, having been opened so often.
func (d *disk) expect(t *testing.T, holders, opened int) {
	t.Helper()
	if h, o := d.counts(); h != holders || o != opened {
		t.Fatalf("the disk is open %d times and was opened %d times, want %d and %d", h, o, holders, opened)
	}
}

func TestReloadKeeps(t *testing.T) {
	d := newDisk()
	s := newServer(t, config(row("a", d, "1")), d)
	u := connect(t, s, nil).use("a")
	reloadTo(t, s, Report{Kept: []string{"a"}}, row("a", d, "1"))

	x := row("a", d, "1")
	x.ReadOnly, x.Aliases, x.MaxConnections = true, []string{"b"}, 2
	reloadTo(t, s, Report{Changed: []string{"a"}}, x)
	d.expect(t, 1, 1)
	u.works() // under the policy that it began with
	v := connect(t, s, nil).use("b")
	if err := v.do(proto.CmdWrite, 0, []byte("x")); !errors.Is(err, proto.EPERM) {
		t.Errorf("write under the new policy: %v", err)
	}
	// Who was there before counts.
	p := connect(t, s, nil)
	p.refused("a", handshake.ErrPolicy)
	p.abort()
	u.leave()
	v.leave()
	d.expect(t, 1, 1)
}

func TestReloadAddsAndRemoves(t *testing.T) {
	a, b, c := newDisk(), newDisk(), newDisk()
	s := newServer(t, config(row("a", a, ""), row("b", b, "")), a, b, c)
	u := connect(t, s, nil).use("a")
	reloadTo(t, s, Report{Added: []string{"c"}, Removed: []string{"a", "b"}}, row("c", c, ""))
	b.expect(t, 0, 1)
	a.expect(t, 1, 1)
	u.works()
	p := connect(t, s, nil)
	p.refused("a", handshake.ErrUnknown)
	p.refused("b", handshake.ErrUnknown)
	p.use("c").leave()

	// Removed and wanted again, as it was: it is the same device.
	reloadTo(t, s, Report{Added: []string{"a"}, Kept: []string{"c"}}, row("a", a, ""), row("c", c, ""))
	connect(t, s, nil).use("a").leave()
	a.expect(t, 1, 1)

	reloadTo(t, s, Report{Removed: []string{"a"}, Kept: []string{"c"}}, row("c", c, ""))
	<-b.closed
	u.leave()
	wait(t, "close of a", a.closed)
}

func TestReloadChangesIdle(t *testing.T) {
	for _, exclusive := range []bool{false, true} {
		t.Run(fmt.Sprint("exclusive ", exclusive), func(t *testing.T) {
			d := newDisk()
			d.exclusive = exclusive
			s := newServer(t, config(row("a", d, "1")), d)
			reloadTo(t, s, Report{Changed: []string{"a"}}, row("a", d, "2"))
			d.expect(t, 1, 2)
			u := connect(t, s, nil).use("a")
			u.works()
			u.leave()
		})
	}
}

func TestReloadRenamesExclusive(t *testing.T) {
	d := newDisk()
	d.exclusive = true
	s := newServer(t, config(row("a", d, "1")), d)
	reloadTo(t, s, Report{Added: []string{"b"}, Removed: []string{"a"}}, row("b", d, "1"))
	connect(t, s, nil).use("b").leave()
	d.expect(t, 1, 2)
}

func TestReloadSwapsExclusive(t *testing.T) {
	d, e := newDisk(), newDisk()
	d.exclusive, e.exclusive = true, true
	s := newServer(t, config(row("a", d, "d"), row("b", e, "e")), d, e)
	reloadTo(t, s, Report{Changed: []string{"a", "b"}}, row("a", e, "e"), row("b", d, "d"))
	d.expect(t, 1, 2)
	e.expect(t, 1, 2)
}

func TestReloadChangesBusy(t *testing.T) {
	d := newDisk()
	d.exclusive = true
	s := newServer(t, config(row("a", d, "1")), d)
	u := connect(t, s, nil).use("a")
	reloadTo(t, s, Report{Pending: []string{"a"}}, row("a", d, "2"))
	p := connect(t, s, nil)
	p.refused("a", handshake.ErrPolicy)
	u.works()
	d.expect(t, 1, 1)

	// Back to what it was: nothing is pending any more.
	reloadTo(t, s, Report{Kept: []string{"a"}}, row("a", d, "1"))
	p.use("a").leave()
	d.expect(t, 1, 1)

	reloadTo(t, s, Report{Pending: []string{"a"}}, row("a", d, "2"))
	reloadTo(t, s, Report{Pending: []string{"a"}}, row("a", d, "3"))
	u.leave()
	connect(t, s, nil).use("a").leave() // waits, if it must, until the device is opened anew
	d.expect(t, 1, 2)
	reloadTo(t, s, Report{Kept: []string{"a"}}, row("a", d, "3"))
}

// When what is pending cannot be opened after all, the export goes on as it was.
func TestReloadPendingFails(t *testing.T) {
	d, e := newDisk(), newDisk()
	var log logBuffer
	cfg := config(row("a", d, "1"))
	cfg.Logger = log.logger()
	s := newServer(t, cfg, d, e)
	u := connect(t, s, nil).use("a")
	reloadTo(t, s, Report{Pending: []string{"a"}}, row("a", e, "2"))
	e.expect(t, 0, 1) // tried
	e.set(func() { e.fail = errors.New("gone") })
	u.leave()
	u = connect(t, s, nil).use("a")
	u.works()
	u.leave()
	d.expect(t, 1, 2)
	if l := log.lines("cannot open an export with its changed settings"); len(l) != 1 || !strings.Contains(l[0], "gone") {
		t.Errorf("log: %q", l)
	}
	reloadTo(t, s, Report{Kept: []string{"a"}}, row("a", d, "1"))
}

func TestReloadIsAllOrNothing(t *testing.T) {
	a, b, busy, bad := newDisk(), newDisk(), newDisk(), newDisk()
	a.exclusive = true
	bad.fail = errors.New("no medium")
	s := newServer(t, config(row("a", a, "1"), row("busy", busy, "1")), a, b, busy, bad)
	u := connect(t, s, nil).use("busy")

	fails := func(want string, exports ...*Export) {
		t.Helper()
		if _, err := s.Reload(config(exports...)); err == nil || !strings.Contains(err.Error(), want) {
			t.Fatalf("Reload: %v, want %q", err, want)
		}
		p := connect(t, s, nil)
		p.refused("b", handshake.ErrUnknown)
		v := p.use("a")
		v.works()
		v.leave()
		connect(t, s, nil).use("busy").leave()
	}
	fails("no medium", row("b", b, ""), row("bad", bad, ""))
	a.expect(t, 1, 1)
	b.expect(t, 0, 1)
	fails("no medium", row("a", a, "2"), row("b", b, ""), row("bad", bad, ""))
	a.expect(t, 1, 1) // not closed for a configuration that is wrong anyhow
	fails("no medium", row("busy", bad, "2"))
	// "In use" is tried again with the idle ones closed, and these come back.
	bad.set(func() { bad.fail = syscall.EBUSY })
	fails("busy", row("a", a, "2"), row("b", b, ""), row("bad", bad, ""))
	a.expect(t, 1, 3) // opened again as it was: 1, the try with "2", "1" again
	b.expect(t, 0, 3)
	fails("taken", row("b", b, ""), row("b", b, ""))
	u.works()
	u.leave()
}

func TestReloadCannotGoBack(t *testing.T) {
	d, bad := newDisk(), newDisk()
	d.exclusive = true
	bad.fail = syscall.EBUSY
	s := newServer(t, config(row("a", d, "1")), d)
	failing := row("a", d, "1")
	gone := false
	failing.Open = func(ctx context.Context, c Client) (*block.Device, error) {
		if gone {
			return nil, errors.New("gone meanwhile")
		}
		return d.open(ctx, c)
	}
	reloadTo(t, s, Report{Kept: []string{"a"}}, failing)
	gone = true
	_, err := s.Reload(config(row("a", bad, "2")))
	if err == nil || !strings.Contains(err.Error(), "out of order") || !strings.Contains(err.Error(), "gone meanwhile") {
		t.Fatalf("Reload: %v", err)
	}
	p := connect(t, s, nil)
	if _, err := p.c.Go(testContext(t), "a"); err == nil {
		t.Error("an export without a device was served")
	}
	reloadTo(t, s, Report{Changed: []string{"a"}}, row("a", d, "1"))
	p.use("a").leave()
}

func TestReloadHeals(t *testing.T) {
	d := newDisk()
	d.exclusive = true
	s := newServer(t, config(row("a", d, "1")), d)
	spoil := func() *user {
		u := connect(t, s, nil).use("a")
		d.set(func() { d.flush = syscall.EIO })
		if err := u.do(proto.CmdFlush, 0, nil); !errors.Is(err, proto.EIO) {
			t.Fatalf("flush: %v", err)
		}
		d.set(func() { d.flush = nil })
		if err := u.do(proto.CmdWrite, 0, []byte("x")); !errors.Is(err, proto.EIO) {
			t.Fatalf("write after a failed flush: %v", err)
		}
		return u
	}
	spoil().leave()
	reloadTo(t, s, Report{Changed: []string{"a"}, Healed: []string{"a"}}, row("a", d, "1"))
	connect(t, s, nil).use("a").leave()
	d.expect(t, 1, 2)

	u := spoil()
	reloadTo(t, s, Report{Pending: []string{"a"}, Healed: []string{"a"}}, row("a", d, "1"))
	u.leave()
	u = connect(t, s, nil).use("a")
	u.works()
	u.leave()
	// What was lost is still known when all is well again.
	if list := s.Exports(); list[0].State != "serving" || list[0].Failures != 2 {
		t.Errorf("%+v, want two failures", list[0])
	}
}

func TestReloadPrivate(t *testing.T) {
	d := newDisk()
	private := func(settings string) *Export {
		x := row("a", d, settings)
		x.Private = true
		return x
	}
	s := newServer(t, config(private("1")), d)
	u := connect(t, s, nil).use("a")
	reloadTo(t, s, Report{Changed: []string{"a"}}, private("2")) // at once: each has its own
	connect(t, s, nil).use("a").leave()
	reloadTo(t, s, Report{Pending: []string{"a"}}, row("a", d, "2"))
	u.leave()
	connect(t, s, nil).use("a").leave()
	h, _ := d.counts()
	if h != 1 {
		t.Errorf("open %d times", h)
	}
	reloadTo(t, s, Report{Changed: []string{"a"}}, private("2"))
	h, _ = d.counts()
	if h != 0 {
		t.Errorf("open %d times", h)
	}
}

// TestReloadProbes: what each connection opens for itself is opened once beforehand, when it
// is new or changed, and what cannot be opened is refused, and changes nothing.
func TestReloadProbes(t *testing.T) {
	d := newDisk()
	d.fail = errors.New("there is no such file")
	private := func(name, settings string) *Export {
		x := row(name, d, settings)
		x.Private, x.Probe = true, true
		return x
	}
	if _, err := New(config(private("a", "1"))); err == nil || err.Error() != `export "a": there is no such file` {
		t.Errorf("New: %v", err)
	}
	d.fail = nil
	s := newServer(t, config(private("a", "1")), d)
	d.expect(t, 0, 1)
	u := connect(t, s, nil).use("a")
	d.set(func() { d.fail = errors.New("there is no such file") })
	reloadTo(t, s, Report{Kept: []string{"a"}}, private("a", "1")) // nobody looks
	for _, x := range []*Export{private("a", "2"), private("b", "1")} {
		if _, err := s.Reload(config(x)); err == nil || !strings.Contains(err.Error(), "there is no such file") {
			t.Errorf("export %s with settings %s: %v", x.Name, x.Settings, err)
		}
	}
	d.set(func() { d.fail = nil })
	connect(t, s, nil).use("a").leave()
	u.leave()

	// What is in the way of the probe, and not wanted any more, is closed first.
	d.set(func() { d.exclusive = true })
	reloadTo(t, s, Report{Added: []string{"b"}, Removed: []string{"a"}}, row("b", d, "1"))
	reloadTo(t, s, Report{Added: []string{"a"}, Removed: []string{"b"}}, private("a", "1"))
	d.expect(t, 0, 5)
}

// Clients come and go while the configuration changes all the time. Under the
// race detector this tests more than it asserts.
func TestReloadUnderLoad(t *testing.T) {
	d := newDisk()
	e := newDisk()
	e.exclusive = true
	s := newServer(t, config(row("a", d, "1"), row("b", e, "1")), d, e)
	var clients sync.WaitGroup
	for range 4 {
		clients.Go(func() {
			for range 100 {
				p := connect(t, s, nil)
				name := []string{"a", "b"}[rand.IntN(2)]
				a, err := p.c.Go(testContext(t), name)
				if err != nil {
					if !errors.Is(err, handshake.ErrPolicy) && !errors.Is(err, handshake.ErrUnknown) {
						t.Errorf("Go: %v", err)
					}
					p.abort()
					continue
				}
				u := p.begin(a)
				u.works()
				u.leave()
			}
		})
	}
	for range 200 {
		exports := []*Export{row("b", e, fmt.Sprint(rand.IntN(2)))}
		if rand.IntN(4) > 0 {
			exports = append(exports, row("a", d, fmt.Sprint(rand.IntN(2))))
		}
		if _, err := s.Reload(config(exports...)); err != nil {
			t.Errorf("Reload: %v", err)
		}
	}
	clients.Wait()
	endsWell(t, s, d, e)
}

// endsWell expects that all is well in the end.
func endsWell(t *testing.T, s *Server, d, e *disk) {
	t.Helper()
	if _, err := s.Reload(config(row("a", d, "end"), row("b", e, "end"))); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a", "b"} {
		u := connect(t, s, nil).use(name)
		u.works()
		u.leave()
	}
	for _, x := range []*disk{d, e} {
		if h, _ := x.counts(); h != 1 {
			t.Errorf("a disk is open %d times", h)
		}
	}
}

// slow is an export whose Open says when it begins, and waits until it may go on.
func slow(name string, d *disk, settings string) (x *Export, begins, goOn chan struct{}) {
	begins, goOn = make(chan struct{}, 10), make(chan struct{})
	x = row(name, d, settings)
	x.Open = func(ctx context.Context, c Client) (*block.Device, error) {
		begins <- struct{}{}
		<-goOn
		return d.open(ctx, c)
	}
	return x, begins, goOn
}

// While a device is being replaced, new clients and other reloads wait for it.
func TestReloadMakesClientsWait(t *testing.T) {
	d := newDisk()
	d.exclusive = true
	s := newServer(t, config(row("a", d, "1")), d)
	u := connect(t, s, nil).use("a")
	x, begins, goOn := slow("a", d, "2")
	reloaded := make(chan error, 1)
	reload := func() { _, err := s.Reload(config(x)); reloaded <- err }
	go reload()
	wait(t, "probe", begins)
	goOn <- struct{}{} // the probe finds the disk in use, as expected
	if err := wait(t, "Reload", reloaded); err != nil {
		t.Fatal(err)
	}
	u.leave()
	wait(t, "replacement", begins)

	p, gone := connect(t, s, nil), connect(t, s, nil)
	used := make(chan error, 1)
	go func() { _, err := p.c.Go(testContext(t), "a"); used <- err }()
	go gone.c.Go(testContext(t), "a")
	go reload()
	gone.nc.Close() // who goes away while it waits is not counted
	select {
	case err := <-used:
		t.Errorf("a client did not wait: %v", err)
	case err := <-reloaded:
		t.Errorf("a reload did not wait: %v", err)
	default:
	}
	close(goOn)
	if err := wait(t, "client", used); err != nil {
		t.Error(err)
	}
	if err := wait(t, "Reload", reloaded); err != nil {
		t.Error(err)
	}
	p.nc.Close()
	wait(t, "end", p.end)
	wait(t, "end", gone.end)
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := s.exports["a"].users; n != 0 {
		t.Errorf("%d users are left", n)
	}
}

// A client that comes while the new device is being opened still gets the old
// one, and the change waits for it.
func TestReloadOvertaken(t *testing.T) {
	for _, exclusive := range []bool{false, true} {
		t.Run(fmt.Sprint("exclusive ", exclusive), func(t *testing.T) {
			d := newDisk()
			d.exclusive = exclusive
			s := newServer(t, config(row("a", d, "1")), d)
			x, begins, goOn := slow("a", d, "2")
			reloaded := make(chan Report, 1)
			go func() {
				r, err := s.Reload(config(x))
				if err != nil {
					t.Errorf("Reload: %v", err)
				}
				reloaded <- r
			}()
			wait(t, "open", begins)
			u := connect(t, s, nil).use("a")
			close(goOn)
			if r := wait(t, "Reload", reloaded); !reflect.DeepEqual(r, Report{Pending: []string{"a"}}) {
				t.Errorf("report %+v", r)
			}
			u.works()
			d.expect(t, 1, map[bool]int{false: 2, true: 1}[exclusive])
			u.leave()
			connect(t, s, nil).use("a").leave()
			d.expect(t, 1, map[bool]int{false: 3, true: 2}[exclusive])
		})
	}
}

// The last client leaves while a reload is under way that was planned with it.
func TestReloadLeftMeanwhile(t *testing.T) {
	d, e := newDisk(), newDisk()
	s := newServer(t, config(row("a", d, "1"), row("b", e, "1")), d, e)
	u, v := connect(t, s, nil).use("a"), connect(t, s, nil).use("b")
	reloadTo(t, s, Report{Pending: []string{"a"}, Removed: []string{"b"}}, row("a", d, "2"))
	d.expect(t, 1, 2)
	x, begins, goOn := slow("a", d, "3")
	reloaded := make(chan error, 1)
	go func() { _, err := s.Reload(config(x)); reloaded <- err }()
	wait(t, "probe", begins)
	u.leave() // does not bring in "2" under the reload to "3"
	v.leave()
	d.expect(t, 1, 2)
	close(goOn)
	if err := wait(t, "Reload", reloaded); err != nil {
		t.Fatal(err)
	}
	connect(t, s, nil).use("a").leave()
	d.expect(t, 1, 4) // the probe, and "3"
	reloadTo(t, s, Report{Kept: []string{"a"}}, row("a", d, "3"))
	wait(t, "close of b", e.closed)
}
