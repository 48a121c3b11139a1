package supervise

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"nbd.example/nbd/kernel"
)

// listen makes the rig's supervisor listen, and connects to it.
func (r *rig) listen() *Client {
	r.t.Helper()
	path := ServicePath(r.dir)
	if err := r.s.Listen(path); err != nil {
		r.t.Fatal(err)
	}
	return r.dial(path)
}

func (r *rig) dial(path string) *Client {
	r.t.Helper()
	c, err := Dial(r.ctx(), path)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { c.Close() })
	return c
}

func TestControl(t *testing.T) {
	r, h := newRig(t), newHost(t, "unix")
	servePrivate(h, newDisk("one"))
	upgraded := false
	r.cfg.Upgrade = func(context.Context) error { upgraded = true; return nil }
	s := r.supervisor()
	c, ctx := r.listen(), r.ctx()
	if info, err := os.Stat(ServicePath(r.dir)); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info.Mode(), err)
	}
	if list, err := c.List(ctx); err != nil || len(list) != 0 {
		t.Errorf("%v, %v", list, err)
	}
	st, err := c.Attach(ctx, &Spec{URIs: []string{h.uri()}, Size: diskSize / 2})
	if err != nil || st.Phase != Attached || st.Control != ServicePath(r.dir) {
		t.Fatalf("%+v, %v", st, err)
	}
	i, none := st.Index, st.Index+1
	if again, err := c.Status(ctx, i); err != nil || again.Identifier != st.Identifier {
		t.Errorf("%+v, %v", again, err)
	}
	if list, err := c.List(ctx); err != nil || len(list) != 1 {
		t.Errorf("%v, %v", list, err)
	}
	if size, err := c.Resize(ctx, i, diskSize); size != diskSize || err != nil {
		t.Errorf("%d, %v", size, err)
	}
	for _, err := range []error{
		second(c.Status(ctx, none)), second(c.Resize(ctx, none, 0)), c.Detach(ctx, none, false),
	} {
		if !errors.Is(err, kernel.ErrNoDevice) || !strings.Contains(err.Error(), none.Path()) {
			t.Errorf("a device that is not there: %v", err)
		}
	}
	r.k.Device(i).SetInfo(func(info *kernel.Info) { info.Mounts = []string{"/mnt"} })
	var busy *BusyError
	if err := c.Detach(ctx, i, false); !errors.As(err, &busy) || busy.Info.Mounts[0] != "/mnt" {
		t.Errorf("%v", err)
	}
	r.k.Device(i).SetInfo(nil)
	if err := c.Upgrade(ctx); err != nil || !upgraded {
		t.Errorf("%v, %v", err, upgraded)
	}
	if err := c.Detach(ctx, i, false); err != nil || len(s.Devices()) != 0 {
		t.Errorf("%v", err)
	}
	if _, err := c.Attach(ctx, &Spec{}); err == nil || !strings.Contains(err.Error(), "neither") {
		t.Errorf("%v", err)
	}
}

func second[T any](_ T, err error) error { return err }

func TestControlSockets(t *testing.T) {
	r := newRig(t)
	path := ServicePath(r.dir)
	if _, err := Dial(r.ctx(), path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("nobody ever listened: %v", err)
	}
	// What a crash leaves.
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	if _, err := Dial(r.ctx(), path); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("nobody listens: %v", err)
	}
	s := r.supervisor()
	c := r.listen()
	if err := s.Listen(filepath.Join(r.dir, "other")); err == nil {
		t.Error("two control sockets")
	}
	other, err := New(r.cfg)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close(r.ctx(), false)
	if err := other.Listen(path); err == nil || !strings.Contains(err.Error(), "another server listens") {
		t.Errorf("the same socket twice: %v", err)
	}
	if err := c.Upgrade(r.ctx()); err == nil || !strings.Contains(err.Error(), "cannot replace itself") {
		t.Errorf("%v", err)
	}
	if err := s.Close(r.ctx(), true); err != nil {
		t.Error(err)
	}
	if _, err := c.List(r.ctx()); err == nil {
		t.Error("an answer after the end")
	}
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket is left: %v", err)
	}
}

// Clients that send nonsense get an error or the end, and harm nobody.
func TestControlNonsense(t *testing.T) {
	r := newRig(t)
	r.supervisor()
	good := r.listen()
	for _, line := range []string{"{}", "nonsense", `{"op":"detach"}`, `{"op":"attach"}`, `{"op":"list","index":-1}`, `[]`} {
		c := r.dial(ServicePath(r.dir))
		fmt.Fprintln(c.conn, line)
		got, err := readLine(c.in)
		if err != nil || !strings.Contains(string(got), "peer sent") {
			t.Errorf("%s: %s, %v", line, got, err)
		}
	}
	c := r.dial(ServicePath(r.dir))
	go io.WriteString(c.conn, strings.Repeat("x", maxRequest+1))
	if got, err := readLine(c.in); err == nil {
		t.Errorf("a line that is too long: %s", got)
	}
	if _, err := good.List(r.ctx()); err != nil {
		t.Error(err)
	}
}

// A client that reads no answers is cut off, so that its place is free for others.
func TestControlUnread(t *testing.T) {
	r := newRig(t)
	r.supervisor().times.write = time.Millisecond
	c := r.listen()
	c.conn.SetWriteDeadline(time.Now().Add(hang))
	for {
		if err := c.say(opList); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatal("the supervisor still holds the connection")
		} else if err != nil {
			return
		}
	}
}

// Whoever does not wait for an attachment any more ends it.
func TestControlHangUp(t *testing.T) {
	r, h := newRig(t), newHost(t, "unix")
	r.supervisor()
	c := r.listen()
	ctx, cancel := context.WithCancel(r.ctx())
	done := make(chan error)
	go func() {
		_, err := c.Attach(ctx, &Spec{URIs: []string{h.uri()}, Wait: true})
		done <- err
	}()
	pending := func() int {
		r.s.mu.Lock()
		defer r.s.mu.Unlock()
		return len(r.s.pending)
	}
	eventually(t, "the attachment's begin", func() bool { return pending() == 1 })
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
	eventually(t, "its end", func() bool { return pending() == 0 })
}

func FuzzRequest(f *testing.F) {
	for _, s := range []string{`{"op":"list"}`, `{"op":"attach","spec":{"uris":["nbd://h/x"],"timeout":1000000000,"tls":{"ca":"/a"}}}`, `{"op":"detach","index":3,"force":true}`, `{"op":"resize","index":0,"size":-1}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		r, err := parseRequest(line)
		if err != nil {
			return
		}
		if r.Spec != nil {
			r.Spec.complete()
		}
		b, err := encode(r)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := parseRequest(b); err != nil {
			t.Fatalf("%s: %v", b, err)
		}
	})
}

func FuzzReply(f *testing.F) {
	for _, err := range []error{errors.New("x"), &BusyError{Forced: true}, &AttachedError{}, kernel.ErrNoDevice, ErrClosed} {
		b, _ := encode(failure(err))
		f.Add(b)
	}
	f.Add([]byte(`{"names":["nbd0-1"],"more":true}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		r, err := parseReply(line)
		if err != nil {
			_ = err.Error()
			return
		}
		r.one(nil)
	})
}

func FuzzState(f *testing.F) {
	st := State{Version: stateVersion, Device: "/dev/nbd0", Spec: Spec{URIs: []string{"nbd://h/x"}}, Connections: []Connection{{Inode: 1}}}
	b, _ := encode(&st)
	f.Add(b)
	f.Add([]byte("{}"))
	f.Fuzz(func(t *testing.T, b []byte) {
		st, err := parseState(b)
		if err == nil && st.Device != st.Index.Path() {
			t.Fatalf("%+v", st)
		}
	})
}

// Who has the last device detached is told the outcome, though the process ends because of
// that.
func TestLastWords(t *testing.T) {
	for range 20 {
		r, h := newRig(t), newHost(t, "unix")
		h.serve(newDisk("one"))
		d, _ := r.attach(&Spec{URIs: []string{h.uri()}})
		c := r.listen()
		closed := make(chan error, 1)
		go func() {
			<-d.Done()
			closed <- r.s.Close(r.ctx(), true)
		}()
		if err := c.Detach(r.ctx(), d.Index(), false); err != nil {
			t.Fatal(err)
		}
		if err := <-closed; err != nil {
			t.Error(err)
		}
	}
}
