package supervise

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"nbd.example/nbd/kernel"
	"nbd.example/nbd/proto"
	"nbd.example/nbd/server"
)

func TestAttach(t *testing.T) {
	r, h := newRig(t), newHost(t, "unix")
	h.serve(newDisk("one"))
	d, err := r.supervisor().Attach(r.ctx(), &Spec{URIs: []string{h.uri()}})
	if err != nil {
		t.Fatal(err)
	}
	dev := r.k.Device(d.Index())
	st := d.Status()
	if st.Phase != Attached || st.Size != diskSize || st.BlockSize != 512 || st.Device != d.Index().Path() || st.Identifier != h.uri() {
		t.Errorf("status %+v", st)
	}
	if st.Timeout != DefaultTimeout || st.DeadTimeout != forEver() || len(st.Connections) != 1 || !st.Connections[0].Alive || !st.Connections[0].Held {
		t.Errorf("status %+v", st)
	}
	if st.Seen.Instance != "one" || !st.Seen.InfoAgrees || st.Seen.Names[h.uri()] != "disk" {
		t.Errorf("seen %+v", st.Seen)
	}
	if a := dev.Attached(); a.Size != diskSize || a.Identifier != h.uri() || a.Timeout != DefaultTimeout || a.Flags&proto.FlagSendFlush == 0 {
		t.Errorf("the kernel was told %+v", a)
	}
	if s := dev.Sockets(); len(s) != 1 || s[0].Inode != st.Connections[0].Inode {
		t.Errorf("sockets %+v", s)
	}
	data := []byte(strings.Repeat("0123456789abcdef", 32))
	if _, err := dev.WriteAt(data, 512); err != nil {
		t.Fatal(err)
	}

	list, err := States(r.dir)
	if err != nil || len(list) != 1 || list[0].Identifier != st.Identifier || !list[0].Process.Running() {
		t.Fatalf("state files: %+v, %v", list, err)
	}
	again, err := r.s.Attach(r.ctx(), &Spec{URIs: []string{"nbd://127.0.0.1:1/other"}, Identifier: h.uri()})
	if err != nil || again != d {
		t.Errorf("attaching the same identifier again: %p, %v; want %p", again, err, d)
	}

	if err := d.Detach(r.ctx(), false); err != nil {
		t.Fatal(err)
	}
	<-d.Done()
	if !errors.Is(d.Err(), ErrDetached) || d.Status().Phase != Gone || dev.Attached() != nil || r.s.Device(d.Index()) != nil {
		t.Errorf("after detach: %v, %+v", d.Err(), d.Status())
	}
	if _, err := os.Stat(statePath(r.dir, d.Index())); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the state file is left: %v", err)
	}
	if err := d.Detach(r.ctx(), false); !errors.Is(err, ErrDetached) {
		t.Errorf("detaching again: %v", err)
	}
}

// A device ends with a whole block, whatever the server has: what comes behind it cannot be
// read.
func TestAttachWholeBlocks(t *testing.T) {
	const odd = 2*4096 + 3*512 + 7
	for _, c := range []struct {
		spec Spec
		want int64
	}{
		{Spec{}, odd - 7},
		{Spec{BlockSize: 1024}, odd - 512 - 7},
		{Spec{BlockSize: 4096}, 2 * 4096},
		{Spec{BlockSize: 4096, Size: 4096 + 512}, 4096},
	} {
		r, h, x := newRig(t), newHost(t, "unix"), newDisk("one")
		x.resize(odd)
		h.serve(x)
		c.spec.URIs = []string{h.uri()}
		d, dev := r.attach(&c.spec)
		if st := d.Status(); st.Size != c.want || dev.Attached().Size != c.want {
			t.Errorf("%+v: %d bytes, and %d for the kernel; want %d", c.spec, st.Size, dev.Attached().Size, c.want)
		}
	}
}

// What is said on a second connection is believed only if it is the same server that says it:
// by its certificate, and since the first connection is alive afterwards.
func TestAskedOther(t *testing.T) {
	r, h := newRig(t), newHost(t, "tcp")
	h.startLimited(server.Config{Exports: []*server.Export{newDisk("one").export()}}, 1) // it says nothing on a second one
	s := r.supervisor()
	s.times.ask = time.Millisecond
	d, _ := r.attach(&Spec{URIs: []string{h.uri()}, ConnectTimeout: 2 * time.Second})
	d.learned(asked{answer: &answer{instance: "another"}})
	if seen := d.Status().Seen; seen.Asked || seen.Instance != "" {
		t.Errorf("the first connection is dead: %+v", seen)
	}
	h.kill()
	h.serve(newDisk("one"))
	st := r.await(d, "a reconnect", func(st State) bool { return st.Phase == Attached && st.Reconnects > 0 })
	p := &peer{from: d.targets[0], file: d.slots[0].file}
	if got := <-s.askBeside(&st, p); got.err != nil || got.answer.instance != "one" || !got.alive {
		t.Errorf("the same server: %+v", got)
	}
	p.who = "key of another"
	if got := <-s.askBeside(&st, p); got.err == nil || !strings.Contains(got.err.Error(), "another one") {
		t.Errorf("another server: %+v", got)
	}
}

// chatty is a connection to a server that goes on talking once the export is chosen.
type chatty struct{ net.Conn }

func (c chatty) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	ack := proto.AppendOptionReply(nil, proto.OptGo, proto.RepAck, nil)
	if bytes.HasSuffix(p[:n], ack) {
		n += copy(p[n:], "surplus")
	}
	return n, err
}

// What a server says before it is asked would be the answer to the kernel's first request.
func TestAttachChatty(t *testing.T) {
	r, h := newRig(t), newHost(t, "tcp")
	r.cfg.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		c, err := new(net.Dialer).DialContext(ctx, network, address)
		return chatty{c}, err
	}
	h.serve(newDisk("one"))
	if _, err := r.supervisor().Attach(r.ctx(), &Spec{URIs: []string{h.uri()}}); err == nil || !strings.Contains(err.Error(), "sent 7 bytes before any request") {
		t.Errorf("attach: %v", err)
	}
}

func TestAttachTogether(t *testing.T) {
	r, h := newRig(t), newHost(t, "unix")
	h.serve(newDisk("one"))
	s := r.supervisor()
	var wg sync.WaitGroup
	got := make([]*Device, 8)
	for i := range got {
		wg.Go(func() {
			var err error
			if got[i], err = s.Attach(r.ctx(), &Spec{URIs: []string{h.uri()}}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	for _, d := range got {
		if d != got[0] {
			t.Error("the same identifier has two devices")
		}
	}
	if n := len(s.Devices()); n != 1 {
		t.Errorf("%d devices", n)
	}
}

func TestAttachRefusals(t *testing.T) {
	r, h := newRig(t), newHost(t, "unix")
	x := newDisk("one").export()
	x.MinBlock = 4096
	h.start(server.Config{Exports: []*server.Export{x}, AllowList: true})
	s := r.supervisor()
	uri := h.uri()
	for _, c := range []struct {
		name string
		spec Spec
		want string
	}{
		{"nothing", Spec{}, "neither"},
		{"two things", Spec{URIs: []string{uri}, Serve: "null:1M"}, "one of them"},
		{"no such scheme", Spec{URIs: []string{"http://x/"}}, "http"},
		{"no such export", Spec{URIs: []string{strings.Replace(uri, "disk", "disc", 1)}}, `the server has "disk"`},
		{"nobody there", Spec{URIs: []string{uri + "x"}}, "no such file"},
		{"blocks too small", Spec{URIs: []string{uri}, BlockSize: 512}, "minimum of 4096"},
		{"blocks of odd size", Spec{URIs: []string{uri}, BlockSize: 5000}, "power of two"},
		{"too large", Spec{URIs: []string{uri}, Size: diskSize + 1}, "fewer than"},
		{"no device", Spec{URIs: []string{uri}, Device: "/dev/sda"}, "/dev/sda"},
		{"no local servers", Spec{Serve: "null:1M"}, "serves nothing"},
		{"a relative path", Spec{URIs: []string{uri}, TLS: &TLSFiles{CA: "ca.pem"}}, "absolute"},
		{"no name to verify", Spec{URIs: []string{uri}, TLS: &TLSFiles{}}, "host name"},
	} {
		if _, err := s.Attach(r.ctx(), &c.spec); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v; want %q in it", c.name, err, c.want)
		}
	}
	d, err := s.Attach(r.ctx(), &Spec{URIs: []string{uri}, Device: "/dev/nbd3", ReadOnly: true, Size: 512 << 10})
	if err != nil {
		t.Fatal(err)
	}
	if st := d.Status(); st.BlockSize != 4096 || st.Index != 3 || st.Size != 512<<10 || st.Flags&proto.FlagReadOnly == 0 {
		t.Errorf("%+v", st)
	}
	if _, err := s.Attach(r.ctx(), &Spec{URIs: []string{uri}, Device: "/dev/nbd3", Identifier: "other"}); !errors.Is(err, kernel.ErrBusy) {
		t.Errorf("a device that is taken: %v", err)
	}
}

// Several connections are made only to servers that say that they show the same disk.
func TestAttachSeveral(t *testing.T) {
	r, h := newRig(t), newHost(t, "tcp")
	x := newDisk("one")
	h.serve(x)
	d, dev := r.attach(&Spec{URIs: []string{h.uri()}, Connections: 4})
	if n := len(dev.Sockets()); n != 4 || len(d.Status().Connections) != 4 {
		t.Errorf("%d connections", n)
	}
	if err := d.Detach(r.ctx(), false); err != nil {
		t.Fatal(err)
	}
	h.kill()
	h.start(x.hide(proto.FlagCanMultiConn))
	d, dev = r.attach(&Spec{URIs: []string{h.uri()}, Connections: 4})
	if n := len(dev.Sockets()); n != 1 || len(d.Status().Connections) != 1 {
		t.Errorf("%d connections to a server that does not offer several", n)
	}
}

// A server that takes one client only is attached all the same.
func TestAttachOneClient(t *testing.T) {
	r, h := newRig(t), newHost(t, "unix")
	x := newDisk("one")
	h.startLimited(server.Config{Exports: []*server.Export{x.export()}}, 1)
	d, dev := r.attach(&Spec{URIs: []string{h.uri()}})
	if st := d.Status(); st.Seen.Instance != "" || st.Seen.InfoAgrees {
		t.Errorf("seen %+v", st.Seen)
	}
	h.kill()
	h.startLimited(server.Config{Exports: []*server.Export{x.export()}}, 1)
	if _, err := dev.WriteAt(make([]byte, 512), 0); err != nil {
		t.Fatal(err)
	}
	r.await(d, "a reconnect", func(st State) bool { return st.Reconnects >= 1 && st.Phase == Attached })
}

func TestAttachWaits(t *testing.T) {
	r, h := newRig(t), newHost(t, "unix")
	s := r.supervisor()
	done, ctx, spec := make(chan error), r.ctx(), &Spec{URIs: []string{h.uri()}, Wait: true}
	go func() {
		_, err := s.Attach(ctx, spec)
		done <- err
	}()
	h.serve(newDisk("one"))
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}
