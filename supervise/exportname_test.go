package supervise

import (
	"context"
	"encoding/binary"
	"net"
	"slices"
	"sync"
	"testing"

	"nbd.example/nbd/proto"
)

// spoken is a connection that keeps what a client says in the handshake.
type spoken struct {
	net.Conn
	mu  *sync.Mutex
	out *[]byte
}

func (s spoken) Write(p []byte) (int, error) {
	s.mu.Lock()
	if len(*s.out) < 64 {
		*s.out = append(*s.out, p...)
	}
	s.mu.Unlock()
	return s.Conn.Write(p)
}

// With Spec.ExportName exports are chosen by NBD_OPT_EXPORT_NAME, at first and when
// connections are made anew, and never by NBD_OPT_GO.
func TestExportName(t *testing.T) {
	r, h, x := newRig(t), newHost(t, "unix"), newDisk("one")
	h.serve(x)
	address := h.address
	var mu sync.Mutex
	var said []*[]byte
	r.cfg.Dial = func(ctx context.Context, _, _ string) (net.Conn, error) {
		conn, err := new(net.Dialer).DialContext(ctx, "unix", address)
		if err != nil {
			return nil, err
		}
		mu.Lock()
		defer mu.Unlock()
		out := new([]byte)
		said = append(said, out)
		return spoken{conn, &mu, out}, nil
	}
	// options returns the first option on each connection.
	options := func() (list []proto.Option) {
		mu.Lock()
		defer mu.Unlock()
		for _, out := range said {
			if len(*out) >= 16 { // the client's flags, and the head of an option
				list = append(list, proto.Option(binary.BigEndian.Uint32((*out)[12:])))
			}
		}
		return list
	}
	d, dev := r.attach(&Spec{URIs: []string{h.uri()}, ExportName: true, Timeout: brisk})
	l := startLoad(dev, 2)
	l.progress(t, 20)
	first := options()
	h.kill()
	r.awaitPhase(d, Reconnecting)
	h.serve(x)
	r.awaitPhase(d, Attached)
	l.progress(t, 20)
	if err := l.end(); err != nil {
		t.Error(err)
	}
	all := options()
	if len(first) == 0 || first[0] != proto.OptExportName || slices.Contains(all, proto.OptGo) || !slices.Contains(all[len(first):], proto.OptExportName) {
		t.Errorf("at first %v, in all %v", first, all)
	}
}
