package supervise

import (
	"context"
	"errors"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"testing"

	"nbd.example/nbd/client"
	"nbd.example/nbd/kernel"
)

// replace detaches a device behind the supervisor's back and attaches the host's export
// under its number, as the reference's client does: without an identifier, if it is "".
func (r *rig) replace(h *host, i kernel.Index, identifier string) {
	r.t.Helper()
	drv := r.k.Open()
	r.t.Cleanup(func() { drv.Close() })
	if err := drv.Disconnect(r.ctx(), i); err != nil {
		r.t.Fatal(err)
	}
	raw, err := client.DialRaw(r.ctx(), h.uri(), &client.Config{NoStructured: true, NoExtended: true, Contexts: []string{}})
	if err != nil {
		r.t.Fatal(err)
	}
	defer raw.Conn.Close()
	f, err := raw.Conn.(interface{ File() (*os.File, error) }).File()
	if err != nil {
		r.t.Fatal(err)
	}
	defer f.Close()
	_, err = drv.Connect(r.ctx(), &kernel.Attach{
		Index: i, Size: diskSize, BlockSize: 512, Flags: raw.Export.Flags, Identifier: identifier, Sockets: []*os.File{f},
		DeadTimeout: forEver(),
	})
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { drv.Disconnect(r.ctx(), i) })
}

// cutAll has a host hang up on everybody, so that the kernel would take new connections.
func (r *rig) cutAll(h *host, i kernel.Index) {
	r.t.Helper()
	h.conns.cut(0, h.conns.count())
	eventually(r.t, "the kernel's notice", func() bool { return alive(r.k.Device(i)) == 0 })
}

// twoHosts returns servers of two disks.
func twoHosts(t *testing.T) (mine, other *host) {
	mine, other = newHost(t, "tcp"), newHost(t, "tcp")
	mine.serve(newDisk("one"))
	other.serve(newDisk("two"))
	return mine, other
}

// What somebody else has attached under the number of a device that is gone gets no
// connection to the server of that one.
func TestReplacedByOther(t *testing.T) {
	for _, identifier := range []string{"", "other"} {
		r := newRig(t)
		mine, other := twoHosts(t)
		d, dev := r.attach(&Spec{URIs: []string{mine.uri()}, Timeout: calm})
		if !d.Status().Shown {
			t.Error("it was not noted that the kernel shows the identifier")
		}
		mine.kill()
		r.awaitPhase(d, Reconnecting)
		r.replace(other, d.Index(), identifier)
		r.cutAll(other, d.Index())
		mine.serve(newDisk("one"))
		<-d.Done()
		if !errors.Is(d.Err(), ErrTakenAway) || alive(dev) != 0 || dev.Attached().Identifier != identifier {
			t.Errorf("%v; the other's device has %d connections", d.Err(), alive(dev))
		}
	}
}

// Between the last look and the hand-over there is little time, but there is a connection to
// be made before.
func TestReplacedMeanwhile(t *testing.T) {
	r := newRig(t)
	mine, other := twoHosts(t)
	address := mine.address
	var armed atomic.Bool
	dialling, replaced := make(chan struct{}), make(chan struct{})
	r.cfg.Dial = func(ctx context.Context, network, _ string) (net.Conn, error) {
		if armed.CompareAndSwap(true, false) {
			close(dialling)
			<-replaced
		}
		return new(net.Dialer).DialContext(ctx, network, address)
	}
	d, dev := r.attach(&Spec{URIs: []string{mine.uri()}, Timeout: calm, AnyInstance: true})
	armed.Store(true)
	mine.conns.cut(0, mine.conns.count())
	<-dialling
	r.replace(other, d.Index(), "")
	r.cutAll(other, d.Index())
	close(replaced)
	<-d.Done()
	if !errors.Is(d.Err(), ErrTakenAway) || alive(dev) != 0 {
		t.Errorf("%v; the other's device has %d connections", d.Err(), alive(dev))
	}
}

// Nor is it adopted.
func TestAdoptReplaced(t *testing.T) {
	r := newRig(t)
	mine, other := twoHosts(t)
	d, dev := r.attach(&Spec{URIs: []string{mine.uri()}, Timeout: calm})
	r.s.crash()
	r.replace(other, d.Index(), "")
	if list, err := r.supervisor().Adopt(r.ctx()); len(list) != 0 || err != nil {
		t.Errorf("adopted %v, %v", list, err)
	}
	if alive(dev) != 1 {
		t.Error("the other's device has lost its connection")
	}
}

// Nor is it detached, by force or without.
func TestDetachReplaced(t *testing.T) {
	for _, force := range []bool{false, true} {
		r := newRig(t)
		mine, other := twoHosts(t)
		r.cfg.Backoff = Backoff{First: hang, Most: hang} // it has not noticed yet
		d, dev := r.attach(&Spec{URIs: []string{mine.uri()}, Timeout: calm})
		mine.kill()
		r.await(d, "the wait for the next attempt", func(st State) bool { return strings.Contains(st.Reason, "refused") })
		r.replace(other, d.Index(), "")
		if err := d.Detach(r.ctx(), force); !errors.Is(err, ErrTakenAway) || !errors.Is(d.Err(), ErrTakenAway) {
			t.Errorf("%v, %v", err, d.Err())
		}
		if alive(dev) != 1 {
			t.Error("the other's device is detached")
		}
	}
}

// The file of a device's number belongs to whoever has attached it last.
func TestFileOfOther(t *testing.T) {
	r := newRig(t)
	mine, other := twoHosts(t)
	r.cfg.Backoff = Backoff{First: hang, Most: hang}
	d, _ := r.attach(&Spec{URIs: []string{mine.uri()}, Timeout: calm})
	first := r.s
	mine.kill()
	r.await(d, "the wait for the next attempt", func(st State) bool { return strings.Contains(st.Reason, "refused") })
	drv := r.k.Open()
	defer drv.Close()
	if err := drv.Disconnect(r.ctx(), d.Index()); err != nil {
		t.Fatal(err)
	}
	next, err := r.supervisor().Attach(r.ctx(), &Spec{URIs: []string{other.uri()}, Device: d.Status().Device, Timeout: calm})
	if err != nil {
		t.Fatal(err)
	}
	same := func(when string) {
		t.Helper()
		first.worker.Flush(r.ctx())
		if list, err := States(r.dir); err != nil || len(list) != 1 || list[0].Identifier != next.identifier() {
			t.Errorf("%s: %+v, %v", when, list, err)
		}
	}
	same("attached")
	d.update(func(st *State) { st.Reason = "still waiting" })
	same("written by who had it before")
	d.Detach(r.ctx(), false)
	same("given up by who had it before")
	if err := next.Detach(r.ctx(), false); err != nil {
		t.Fatal(err)
	}
	if list, _ := States(r.dir); len(list) != 0 {
		t.Errorf("left: %+v", list)
	}
}
