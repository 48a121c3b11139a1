package supervise

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"nbd.example/nbd/internal/testgate"
	"nbd.example/nbd/kernel"
	"nbd.example/nbd/kernel/kerneltest"
	"nbd.example/nbd/supervise/pass"
	"nbd.example/nbd/supervise/process"
	"nbd.example/nbd/supervise/sock"
)

// adoptOne has a new supervisor adopt the only device.
func (r *rig) adoptOne(i kernel.Index) *Device {
	r.t.Helper()
	r.supervisor()
	return r.adopts(i)
}

// adopts has the supervisor adopt the only device.
func (r *rig) adopts(i kernel.Index) *Device {
	r.t.Helper()
	list, err := r.s.Adopt(r.ctx())
	if err != nil || len(list) != 1 || list[0].Index() != i {
		r.t.Fatalf("adopted %v, %v", list, err)
	}
	return list[0]
}

// After a crash the next supervisor has no sockets, leaves what works alone, and
// replaces what dies then.
func TestAdoptAfterCrash(t *testing.T) {
	for _, n := range []int{1, 3} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			r, h, x := newRig(t), newHost(t, "tcp"), newDisk("one")
			h.serve(x)
			d, dev := r.attach(&Spec{URIs: []string{h.uri()}, Connections: n, Timeout: calm})
			l := startLoad(dev, 3)
			l.progress(t, 20)
			inodes := inodesOf(dev.Sockets())
			r.s.crash()
			accepted := h.conns.count()
			d = r.adoptOne(d.Index())
			// The offer that proves that all is well comes and goes.
			eventually(t, "a connection that the kernel does not take", func() bool { return h.conns.count() > accepted })
			l.progress(t, 20)
			if now := inodesOf(dev.Sockets()); !slices.Equal(now, inodes) {
				t.Errorf("the kernel has sockets %v, had %v: what worked was replaced", now, inodes)
			}
			if st := d.Status(); st.Reconnects != 0 || st.Connections[0].Held {
				t.Errorf("%+v", st)
			}
			if err := l.end(); err != nil {
				t.Error(err)
			}
			h.kill()
			h.serve(x)
			st := r.await(d, "connections of its own", func(st State) bool { return st.Reconnects >= n && st.Phase == Attached })
			if len(st.held()) != n {
				t.Errorf("%+v", st)
			}
			eventually(t, "the kernel's connections", func() bool { return alive(dev) == n })
			l = startLoad(dev, 3)
			l.progress(t, 20)
			if err := l.end(); err != nil {
				t.Error(err)
			}
		})
	}
}

func inodesOf(list []kerneltest.Socket) (out []uint64) {
	for _, s := range list {
		out = append(out, s.Inode)
	}
	return out
}

// A connection that died while nobody kept the device is replaced.
func TestAdoptDead(t *testing.T) {
	r, h, x := newRig(t), newHost(t, "unix"), newDisk("one")
	h.serve(x)
	d, dev := r.attach(&Spec{URIs: []string{h.uri()}, Timeout: brisk})
	l := startLoad(dev, 2)
	l.progress(t, 10)
	r.s.crash()
	h.kill()
	eventually(t, "the kernel's notice", func() bool { return alive(dev) == 0 })
	h.serve(newDisk("two")) // the identity is remembered, too
	d = r.adoptOne(d.Index())
	st := r.await(d, "a refusal", func(st State) bool { return strings.Contains(st.Reason, "another instance") })
	if alive(dev) != 0 {
		t.Errorf("%+v", st)
	}
	h.kill()
	h.serve(x)
	r.await(d, "a reconnect", func(st State) bool { return st.Reconnects >= 1 && st.Phase == Attached })
	l.progress(t, 10)
	if err := l.end(); err != nil {
		t.Error(err)
	}
}

// Close can leave the devices attached; then anybody may adopt them.
func TestCloseKeep(t *testing.T) {
	r, h, x := newRig(t), newHost(t, "unix"), newDisk("one")
	h.serve(x)
	d, dev := r.attach(&Spec{URIs: []string{h.uri()}, Connections: 2})
	if err := r.s.Close(r.ctx(), true); err != nil {
		t.Fatal(err)
	}
	if !errors.Is(d.Err(), ErrClosed) || alive(dev) != 2 {
		t.Errorf("%v, %d connections", d.Err(), alive(dev))
	}
	if list, err := States(r.dir); err != nil || len(list) != 1 || list[0].Phase != Released || list[0].Process.Running() {
		t.Errorf("%+v, %v", list, err)
	}
	if _, err := r.s.Attach(r.ctx(), &Spec{URIs: []string{h.uri()}}); !errors.Is(err, ErrClosed) {
		t.Errorf("attach after close: %v", err)
	}
	// Attach adopts, too.
	r.supervisor()
	again, _ := r.attach(&Spec{URIs: []string{h.uri()}})
	if again.Index() != d.Index() || again.Status().Since != d.Status().Since.Round(0) && !again.Status().Since.Equal(d.Status().Since) {
		t.Errorf("%+v", again.Status())
	}
}

// What another process keeps is not attached a second time, nor adopted.
func TestAnotherProcess(t *testing.T) {
	testgate.Requires(t, testgate.Program("sleep"))
	r, h := newRig(t), newHost(t, "unix")
	h.serve(newDisk("one"))
	d, _ := r.attach(&Spec{URIs: []string{h.uri()}})
	r.s.crash()
	other := exec.Command("sleep", "600")
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { other.Process.Kill(); other.Wait() }()
	list, err := States(r.dir)
	if err != nil || len(list) != 1 {
		t.Fatal(list, err)
	}
	list[0].Process = Process{PID: other.Process.Pid, Start: startOf(t, other.Process.Pid)}
	if err := writeState(r.dir, &list[0]); err != nil {
		t.Fatal(err)
	}
	s := r.supervisor()
	var attached *AttachedError
	if _, err := s.Attach(r.ctx(), &Spec{URIs: []string{h.uri()}}); !errors.As(err, &attached) || attached.State.Index != d.Index() {
		t.Errorf("attach: %v", err)
	}
	if list, err := s.Adopt(r.ctx()); err != nil || len(list) != 0 {
		t.Errorf("adopt: %v, %v", list, err)
	}
	other.Process.Kill()
	other.Wait()
	if list, err := s.Adopt(r.ctx()); err != nil || len(list) != 1 {
		t.Errorf("adopt after its death: %v, %v", list, err)
	}
}

// Files of devices that are no longer attached, or are attached by others, are not
// adopted, and broken ones are named.
func TestAdoptStale(t *testing.T) {
	r, h := newRig(t), newHost(t, "unix")
	h.serve(newDisk("one"))
	d, _ := r.attach(&Spec{URIs: []string{h.uri()}})
	st := d.Status()
	r.s.crash()
	if err := r.k.Open().Disconnect(r.ctx(), d.Index()); err != nil {
		t.Fatal(err)
	}
	killed := exec.Command("true")
	if err := killed.Run(); err != nil {
		t.Fatal(err)
	}
	st.Index, st.Device, st.Process = 5, "/dev/nbd5", Process{PID: killed.Process.Pid, Start: 1}
	socket := ControlPath(r.dir, st.Process.PID)
	if err := errors.Join(writeState(r.dir, &st), os.WriteFile(socket, nil, 0o600), os.WriteFile(filepath.Join(r.dir, "nbd6.json"), []byte("{"), 0o600)); err != nil {
		t.Fatal(err)
	}
	s := r.supervisor()
	list, err := s.Adopt(r.ctx())
	if len(list) != 0 || err == nil || !strings.Contains(err.Error(), "nbd6.json") {
		t.Errorf("adopted %v, %v", list, err)
	}
	if left, _ := States(r.dir); len(left) != 0 {
		t.Errorf("left %+v", left)
	}
	if _, err := os.Lstat(socket); !os.IsNotExist(err) {
		t.Errorf("the control socket of who was killed: %v", err)
	}
}

// A device that another process had before, which was killed and whose device was detached,
// leaves nothing of it.
func TestAttachAfterKilled(t *testing.T) {
	r, h := newRig(t), newHost(t, "unix")
	h.serve(newDisk("one"))
	killed := exec.Command("true")
	if err := killed.Run(); err != nil {
		t.Fatal(err)
	}
	old := State{Version: stateVersion, Index: 3, Device: "/dev/nbd3", Identifier: "other", Process: Process{PID: killed.Process.Pid, Start: 1}}
	socket := ControlPath(r.dir, old.Process.PID)
	if err := errors.Join(writeState(r.dir, &old), os.WriteFile(socket, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	r.attach(&Spec{URIs: []string{h.uri()}, Device: "/dev/nbd3"})
	if _, err := os.Lstat(socket); !os.IsNotExist(err) {
		t.Errorf("the control socket of who was killed: %v", err)
	}
}

// looking has each look at the system go through a function.
type looking struct {
	kernel.Driver
	info func(kernel.Index) (*kernel.Info, error)
}

func (l *looking) Info(i kernel.Index) (*kernel.Info, error) { return l.info(i) }

// What another process writes while a stale file is looked at is its own, and stays.
func TestAdoptStaleRewritten(t *testing.T) {
	r, h := newRig(t), newHost(t, "tcp")
	h.serve(newDisk("one"))
	d, _ := r.attach(&Spec{URIs: []string{h.uri()}})
	other := d.Status()
	r.s.crash()
	driver := r.cfg.Kernel
	if err := driver.Disconnect(r.ctx(), d.Index()); err != nil {
		t.Fatal(err)
	}
	if _, err := kernel.AwaitGone(r.ctx(), driver, d.Index()); err != nil {
		t.Fatal(err)
	}
	other.Identifier, other.Process = "other", Process{PID: 1, Start: startOf(t, 1)}
	r.cfg.Kernel = &looking{driver, func(i kernel.Index) (*kernel.Info, error) {
		if err := writeState(r.dir, &other); err != nil {
			t.Error(err)
		}
		return driver.Info(i)
	}}
	if list, err := r.supervisor().Adopt(r.ctx()); len(list) != 0 || err != nil {
		t.Errorf("adopted %v, %v", list, err)
	}
	if st, err := readState(statePath(r.dir, d.Index())); err != nil || st.Identifier != "other" {
		t.Errorf("the other process's file: %+v, %v", st, err)
	}
}

// Whoever has taken devices over keeps them, also if the process before could not write that
// it has let go of them.
func TestTakeOverUnwritten(t *testing.T) {
	r, h := newRig(t), newHost(t, "tcp")
	h.serve(newDisk("one"))
	old := r.supervisor()
	old.self = Process{PID: 1, Start: startOf(t, 1)} // that runs on
	path := ControlPath(r.dir, 1)
	if err := old.Listen(path); err != nil {
		t.Fatal(err)
	}
	d, dev := r.attach(&Spec{URIs: []string{h.uri()}})
	before, err := readState(statePath(r.dir, d.Index()))
	if err != nil || before.Process != old.self {
		t.Fatal(before, err)
	}
	next := r.supervisor()
	if err := next.TakeOver(r.ctx(), path); err != nil {
		t.Fatal(err)
	}
	if err := writeState(r.dir, before); err != nil { // as if there had been no room for another
		t.Fatal(err)
	}
	list, err := next.Adopt(r.ctx())
	if err != nil || len(list) != 1 || alive(dev) != 1 || d.Err() != ErrHandedOver {
		t.Fatalf("adopted %v, %v; %v", list, err, d.Err())
	}
	if st, err := readState(statePath(r.dir, d.Index())); err != nil || st.Process != next.self {
		t.Errorf("the file: %+v, %v", st, err)
	}
}

// While a device is being detached, and somebody holds it, a hand-over waits for that. The
// other devices do not lose their keeper meanwhile.
func TestHandOverWhileDetaching(t *testing.T) {
	r, h := newRig(t), newHost(t, "tcp")
	h.serve(newDisk("one"))
	r.supervisor()
	path := ControlPath(r.dir, 1)
	if err := r.s.Listen(path); err != nil {
		t.Fatal(err)
	}
	first, _ := r.attach(&Spec{URIs: []string{h.uri()}, Identifier: "a", Device: "/dev/nbd0"})
	second, dev := r.attach(&Spec{URIs: []string{h.uri()}, Identifier: "b", Device: "/dev/nbd1"})
	release, err := dev.Open()
	if err != nil {
		t.Fatal(err)
	}
	detaching, cancel := context.WithCancel(r.ctx())
	defer cancel()
	detached := make(chan error, 1)
	go func() { detached <- second.Detach(detaching, false) }()
	r.awaitPhase(second, Detaching)
	c := r.dial(path)
	if err := c.say(opHandOver); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the hand-over", func() bool {
		r.s.mu.Lock()
		defer r.s.mu.Unlock()
		return r.s.paused != nil
	})
	ended, end := context.WithCancel(r.ctx())
	end()
	if err := r.s.keep(ended, first); !errors.Is(err, context.Canceled) {
		t.Errorf("what is attached meanwhile waits, but no longer than it may: %v", err)
	}
	h.conns.cut(0, h.conns.count())
	r.await(first, "another connection", func(st State) bool { return st.Reconnects > 0 })
	c.Close()
	release()
	if err := <-detached; err != nil {
		t.Error(err)
	}
}

// What another supervisor of the process keeps that has handed over is not taken from it.
func TestTakeOverOther(t *testing.T) {
	r, h := newRig(t), newHost(t, "tcp")
	h.serve(newDisk("one"))
	process := Process{PID: 1, Start: startOf(t, 1)}
	other := r.supervisor()
	other.self = process
	d, _ := r.attach(&Spec{URIs: []string{h.uri()}})
	old := r.supervisor()
	old.self = process
	path := ControlPath(r.dir, 1)
	if err := old.Listen(path); err != nil {
		t.Fatal(err)
	}
	next := r.supervisor()
	if err := next.TakeOver(r.ctx(), path); err != nil {
		t.Fatal(err)
	}
	if list, err := next.Adopt(r.ctx()); len(list) != 0 || err != nil || d.Err() != nil {
		t.Errorf("adopted %v, %v; %v", list, err, d.Err())
	}
	other.crash()
}

// What could not be adopted, and then can, still has its sockets.
func TestAdoptAgain(t *testing.T) {
	r, h := newRig(t), newHost(t, "tcp")
	h.serve(newDisk("one"))
	old := r.supervisor()
	path := ControlPath(r.dir, 1)
	if err := old.Listen(path); err != nil {
		t.Fatal(err)
	}
	d, _ := r.attach(&Spec{URIs: []string{h.uri()}})
	next := r.supervisor()
	if err := next.TakeOver(r.ctx(), path); err != nil {
		t.Fatal(err)
	}
	unlock, err := old.lock(r.ctx(), d.Status().Identifier)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(r.ctx())
	cancel() // somebody else has the lock for longer
	list, err := next.Adopt(ctx)
	if failed := Unadopted(err); len(list) != 0 || len(failed) != 1 || failed[0] != d.Index() {
		t.Errorf("adopted %v, %v", list, err)
	}
	unlock()
	if list, err = next.Adopt(r.ctx(), d.Index()+1); len(list) != 0 || err != nil {
		t.Errorf("adopted what was not asked for: %v, %v", list, err)
	}
	if list, err = next.Adopt(r.ctx(), d.Index()); err != nil || len(list) != 1 {
		t.Fatal(list, err)
	}
	if held := list[0].Status().held(); len(held) != 1 {
		t.Errorf("the sockets of %v", held)
	}
}

// A hand-over to somebody who has gone ends, also if a device is being detached for long;
// and what another device is asked meanwhile is bounded.
func TestHandOverGivenUp(t *testing.T) {
	r, h := newRig(t), newHost(t, "tcp")
	h.serve(newDisk("one"))
	r.supervisor()
	path := ControlPath(r.dir, 1)
	if err := r.s.Listen(path); err != nil {
		t.Fatal(err)
	}
	first, _ := r.attach(&Spec{URIs: []string{h.uri()}, Identifier: "a", Device: "/dev/nbd0"})
	second, dev := r.attach(&Spec{URIs: []string{h.uri()}, Identifier: "b", Device: "/dev/nbd1"})
	release, err := dev.Open()
	if err != nil {
		t.Fatal(err)
	}
	detached := make(chan error, 1)
	go func() { detached <- second.Detach(r.ctx(), false) }()
	r.awaitPhase(second, Detaching)
	c := r.dial(path)
	if err := c.say(opHandOver); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the hand-over", func() bool {
		r.s.mu.Lock()
		defer r.s.mu.Unlock()
		return r.s.paused != nil
	})
	ended, end := context.WithCancel(r.ctx())
	end()
	if err := second.Detach(ended, true); !errors.Is(err, context.Canceled) {
		t.Errorf("a second detach, which may not wait: %v", err)
	}
	if err := first.Detach(r.ctx(), true); err != nil {
		t.Errorf("another device: %v", err)
	}
	c.Close()
	r.attach(&Spec{URIs: []string{h.uri()}, Identifier: "c"})
	release()
	if err := <-detached; err != nil {
		t.Error(err)
	}
}

// A supervisor hands over to another one while requests are under way: no connection
// changes.
func TestTakeOver(t *testing.T) {
	r, h, x := newRig(t), newHost(t, "tcp"), newDisk("one")
	h.serve(x)
	d, dev := r.attach(&Spec{URIs: []string{h.uri()}, Connections: 3, Timeout: calm})
	old := r.s
	path := ControlPath(r.dir, 1)
	if err := old.Listen(path); err != nil {
		t.Fatal(err)
	}
	l := startLoad(dev, 3)
	l.progress(t, 20)
	inodes := inodesOf(dev.Sockets())
	next := r.supervisor()
	if err := next.TakeOver(r.ctx(), path); err != nil || len(next.inherited) != 3 {
		t.Fatal(next.inherited, err)
	}
	if err := next.Listen(path); err != nil {
		t.Errorf("at once, at the same path: %v", err)
	}
	<-old.Done()
	if !errors.Is(d.Err(), ErrHandedOver) {
		t.Errorf("%v", d.Err())
	}
	if _, err := old.Attach(r.ctx(), &Spec{URIs: []string{h.uri()}}); !errors.Is(err, ErrHandedOver) {
		t.Errorf("attach after handing over: %v", err)
	}
	d = r.adopts(d.Index())
	l.progress(t, 20)
	if st := d.Status(); len(st.held()) != 3 || st.Reconnects != 0 || st.Phase != Attached {
		t.Errorf("%+v", st)
	}
	if now := inodesOf(dev.Sockets()); !slices.Equal(now, inodes) {
		t.Errorf("sockets %v, had %v", now, inodes)
	}
	if err := l.end(); err != nil {
		t.Error(err)
	}
	h.conns.cut(0, 1)
	r.await(d, "one connection replaced", func(st State) bool { return st.Reconnects >= 1 && st.Phase == Attached })
}

// A process that goes away while it takes over gets nothing, and the one before goes on.
func TestTakeOverLost(t *testing.T) {
	r, h, x := newRig(t), newHost(t, "tcp"), newDisk("one")
	h.serve(x)
	r.supervisor()
	r.s.times.taken = hang // only one of them says nothing
	path := ControlPath(r.dir, 1)
	if err := r.s.Listen(path); err != nil {
		t.Fatal(err)
	}
	d, dev := r.attach(&Spec{URIs: []string{h.uri()}, Connections: 2, Timeout: calm})
	paused := func() bool {
		r.s.mu.Lock()
		defer r.s.mu.Unlock()
		return r.s.paused != nil
	}
	receive := func(c *Client) {
		sockets, err := receiveAll(c.conn)
		if err != nil || len(sockets) != 2 {
			t.Errorf("%v, %v", sockets, err)
		}
		for _, s := range sockets {
			s.File.Close()
		}
	}
	for name, part := range map[string]func(c *Client){
		"before the answer": func(c *Client) {
			c.say(opHandOver)
			eventually(t, "the begin of handing over", paused)
		},
		"instead of saying that it has the sockets": func(c *Client) {
			c.say(opHandOver)
			receive(c)
		},
		"after nonsense": func(c *Client) { c.say(opHandOver); c.say(opList); c.in.ReadBytes('}') },
	} {
		c := r.dial(path)
		part(c)
		c.Close()
		eventually(t, "the end of handing over", func() bool { return !paused() })
		before := d.Status().Reconnects
		h.conns.cut(0, h.conns.count())
		r.await(d, "a new connection after one went "+name, func(st State) bool { return st.Reconnects > before && st.Phase == Attached })
	}
	r.s.times.taken = time.Millisecond
	c := r.dial(path)
	if err := c.say(opHandOver); err != nil {
		t.Fatal(err)
	}
	sockets, err := receiveAll(c.conn)
	for _, s := range sockets {
		s.File.Close()
	}
	if err == nil { // the reproach has not come along
		line, failed := readLine(c.in)
		if failed != nil {
			t.Fatal(failed)
		}
		_, err = parseReply(line)
	}
	if err == nil || !strings.Contains(err.Error(), "does not say that it has everything") {
		t.Errorf("from a process that says nothing: %v", err)
	}
	if st, err := r.dial(path).Status(r.ctx(), d.Index()); err != nil || st.Process != r.s.self {
		t.Errorf("%+v, %v", st, err)
	}
	if _, err := dev.WriteAt(make([]byte, 512), 0); err != nil {
		t.Error(err)
	}
}

// Nothing is attached while everything is passed on: nobody would keep it.
func TestAttachWhilePassedOn(t *testing.T) {
	r, h, x := newRig(t), newHost(t, "unix"), newDisk("one")
	h.serve(x)
	s := r.supervisor()
	spec := &Spec{URIs: []string{h.uri()}}
	for _, handed := range []bool{false, true} {
		resume, err := s.pause(false)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Reexec("/nonexistent", nil, nil); !errors.Is(err, ErrHandedOver) {
			t.Errorf("twice at the same time: %v", err)
		}
		short, cancel := context.WithTimeout(r.ctx(), 100*time.Millisecond)
		if _, err := s.Attach(short, spec); !errors.Is(err, context.DeadlineExceeded) || len(s.Devices()) > 0 {
			t.Errorf("%v; %v", s.Devices(), err)
		}
		cancel()
		done := make(chan error, 1)
		go func() {
			d, err := s.Attach(r.ctx(), spec)
			if err == nil {
				err = d.Detach(r.ctx(), false)
			}
			done <- err
		}()
		resume(handed)
		if err := <-done; handed != errors.Is(err, ErrHandedOver) || !handed && err != nil {
			t.Errorf("handed over %v: %v", handed, err)
		}
	}
}

// memoryStore is a Store.
type memoryStore struct {
	mu    sync.Mutex
	files map[string]*os.File
}

func (m *memoryStore) Keep(name string, f *os.File) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	copied, err := copyFile(f)
	m.files[name] = copied
	return err
}

func (m *memoryStore) Drop(name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.files[name] == nil {
		return errors.New("it is not there")
	}
	m.files[name].Close()
	delete(m.files, name)
	return nil
}

func (m *memoryStore) names() (list []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for n := range m.files {
		list = append(list, n)
	}
	slices.Sort(list)
	return list
}

// With a store even a crash leaves the sockets.
func TestStore(t *testing.T) {
	r, h, x := newRig(t), newHost(t, "unix"), newDisk("one")
	h.serve(x)
	store := &memoryStore{files: map[string]*os.File{}}
	r.cfg.Store = store
	d, dev := r.attach(&Spec{URIs: []string{h.uri()}, Connections: 2, Timeout: calm})
	names := func() (list []string) {
		for _, s := range dev.Sockets() {
			list = append(list, pass.Name(d.Index(), s.Inode))
		}
		slices.Sort(list)
		return list
	}
	same := func() bool { return slices.Equal(store.names(), names()) }
	eventually(t, "both sockets in the store", same)
	h.kill()
	h.serve(x)
	r.await(d, "new connections", func(st State) bool { return st.Reconnects >= 2 && st.Phase == Attached })
	eventually(t, "the new sockets in the store", same)
	r.s.crash()
	var sockets []Socket
	for name, f := range store.files {
		copied, err := copyFile(f)
		if err != nil {
			t.Fatal(err)
		}
		sockets = append(sockets, Socket{Name: name, File: copied})
	}
	r.cfg.Inherited = sockets
	d = r.adoptOne(d.Index())
	if st := d.Status(); len(st.held()) != 2 || st.Reconnects < 2 {
		t.Errorf("%+v", st)
	}
	if err := d.Detach(r.ctx(), false); err != nil {
		t.Fatal(err)
	}
	eventually(t, "an empty store", func() bool { return len(store.names()) == 0 })
}

// A successor process finds by Inherit what was passed to exec.
func TestReexec(t *testing.T) {
	testgate.Requires(t, testgate.Linux())
	const stage = "NBD_SUPERVISE_TEST_STAGE"
	switch os.Getenv(stage) {
	case "1":
		a, b := socketPair(t)
		sockets := []Socket{{Name: pass.Name(0, sock.Inode(a)), File: a}, {Name: pass.Name(7, sock.Inode(b)), File: b}}
		fmt.Printf("passed %s %s\n", sockets[0].Name, sockets[1].Name)
		os.Setenv(stage, "2")
		err := pass.Exec(os.Args[0], os.Args, append(os.Environ(), pass.Variable+"=what it was"), sockets)
		fmt.Println(err)
		os.Exit(1)
	case "2":
		fmt.Print("got")
		for _, s := range Inherit() {
			name := strings.SplitN(s.Name, "-", 2)[0]
			i, _ := kernel.ParseIndex(name)
			if pass.Name(i, sock.Inode(s.File)) != s.Name {
				fmt.Print(" the wrong")
			}
			fmt.Print(" ", s.Name)
		}
		fmt.Println()
		if len(Inherit()) != 0 {
			fmt.Println("again")
		}
		os.Exit(0)
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestReexec$")
	cmd.Env = append(os.Environ(), stage+"=1")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	first, second, _ := bytes.Cut(bytes.TrimSpace(out), []byte("\n"))
	if want := bytes.Replace(first, []byte("passed"), []byte("got"), 1); !bytes.Equal(second, want) {
		t.Errorf("the successor says %q, want %q", second, want)
	}
}

// A socket that the service manager passed to a process is not taken for another one
// after that process has replaced itself: its number and its variables stay the same.
func TestReexecAfterStore(t *testing.T) {
	testgate.Requires(t, testgate.Linux())
	const stage = "NBD_SUPERVISE_TEST_STORE"
	switch variables := os.Getenv(stage); variables {
	case "new variables", "old variables":
		os.Setenv(stage, "last")
		env := os.Environ()
		sockets := Inherit()
		fmt.Println("first", describe(sockets))
		if variables == "new variables" {
			env = os.Environ()
		}
		err := pass.Exec(os.Args[0], os.Args, env, sockets)
		fmt.Println(err)
		os.Exit(1)
	case "last":
		fmt.Println("second", describe(Inherit()))
		os.Exit(0)
	}
	a, b := socketPair(t)
	defer a.Close()
	defer b.Close()
	name := pass.Name(3, sock.Inode(a))
	for _, variables := range []string{"new variables", "old variables"} {
		cmd := exec.Command("sh", "-c", `LISTEN_PID=$$ exec "$0" "$@"`, os.Args[0], "-test.run=^TestReexecAfterStore$")
		cmd.ExtraFiles = []*os.File{a}
		cmd.Env = append(os.Environ(), stage+"="+variables, "LISTEN_FDS=1", "LISTEN_FDNAMES="+name)
		out, err := cmd.CombinedOutput()
		if want := fmt.Sprintf("first [%s]\nsecond [%[1]s]\n", name); err != nil || string(out) != want {
			t.Errorf("%s: %v\n%swant\n%s", variables, err, out, want)
		}
	}
}

// describe names sockets by what they are.
func describe(list []Socket) (names []string) {
	for _, s := range list {
		device, _, _ := strings.Cut(s.Name, "-")
		i, _ := kernel.ParseIndex(device)
		names = append(names, pass.Name(i, sock.Inode(s.File)))
	}
	return names
}

// An exec that fails changes nothing.
func TestReexecFails(t *testing.T) {
	r, h, x := newRig(t), newHost(t, "unix"), newDisk("one")
	h.serve(x)
	d, dev := r.attach(&Spec{URIs: []string{h.uri()}})
	if err := r.s.Reexec("/nonexistent", []string{"x"}, os.Environ()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v", err)
	}
	h.kill()
	h.serve(x)
	if _, err := dev.WriteAt(make([]byte, 512), 0); err != nil {
		t.Fatal(err)
	}
	r.await(d, "a reconnect", func(st State) bool { return st.Reconnects >= 1 })
}

// What cannot be looked at for want of descriptors is not known to be gone, or free.
func TestShortOfDescriptors(t *testing.T) {
	testgate.Requires(t, testgate.Linux())
	r := newRig(t)
	s := r.supervisor()
	other := Process{PID: 1, Start: startOf(t, 1)}
	var running, owns bool
	withoutDescriptors(t, func() {
		running, owns = other.Running(), s.owns(&Device{index: 12, log: s.log, sup: s})
	})
	if !running || owns {
		t.Errorf("running %v, owns %v", running, owns)
	}
	if !s.owns(&Device{index: 12}) {
		t.Error("a file that does not exist belongs to somebody")
	}
}

// startOf returns when a process began.
func startOf(t *testing.T, pid int) uint64 {
	t.Helper()
	p, err := process.Of(pid)
	if err != nil {
		t.Fatal(err)
	}
	return p.Start
}
