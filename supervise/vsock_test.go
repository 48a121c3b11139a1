package supervise

import (
	"context"
	"net"
	"testing"
)

// A connection that the kernel does not take, such as one by vsock, goes through a relay,
// and is made anew like any other.
func TestVSock(t *testing.T) {
	r, h, x := newRig(t), newHost(t, "unix"), newDisk("one")
	h.serve(x)
	address := h.address // it stays the same
	r.cfg.Dial = func(ctx context.Context, network, where string) (net.Conn, error) {
		if network != "vsock" || where != "3:77" {
			t.Errorf("dialled %s, %s", network, where)
		}
		conn, err := new(net.Dialer).DialContext(ctx, "unix", address)
		return struct{ net.Conn }{conn}, err // of no type that has a socket for the kernel
	}
	d, dev := r.attach(&Spec{URIs: []string{"nbd+vsock://3:77/disk"}, Timeout: brisk})
	if st := d.Status(); !st.Connections[0].Relay || st.Identifier != "nbd+vsock://3:77/disk" {
		t.Errorf("%+v", st)
	}
	l := startLoad(dev, 2)
	for range 2 {
		l.progress(t, 20)
		h.kill()
		r.awaitPhase(d, Reconnecting)
		h.serve(x)
		r.awaitPhase(d, Attached)
	}
	l.progress(t, 20)
	if err := l.end(); err != nil {
		t.Error(err)
	}
}
