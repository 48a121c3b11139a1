package supervise

import (
	"errors"
	"net"
	"strings"
	"testing"

	"nbd.example/nbd/proto"
	"nbd.example/nbd/server"
)

// startOldstyle serves the disk to antique clients, at the address of the last time.
func (h *host) startOldstyle(x *server.Export) {
	h.t.Helper()
	h.startWith(server.Config{Exports: []*server.Export{x}}, 0, func(s *server.Server, l net.Listener) error {
		return s.ServeOldstyle(l, x.Name)
	})
}

// oldURI names a server that has no names of exports.
func (h *host) oldURI() string { return strings.TrimSuffix(h.uri(), "disk") }

// A server of before 2011 is recognised by its greeting, and compared like any other when
// it comes back.
func TestOldstyle(t *testing.T) {
	r, h, x := newRig(t), newHost(t, "tcp"), newDisk("one")
	h.startOldstyle(x.export())
	d, dev := r.attach(&Spec{URIs: []string{h.oldURI()}, Timeout: brisk})
	st := d.Status()
	if st.Size != diskSize || st.Seen.InfoAgrees || st.Seen.Instance != "" || st.Flags&proto.FlagSendFlush == 0 {
		t.Errorf("%+v", st)
	}
	l := startLoad(dev, 3)
	for range 3 {
		l.progress(t, 20)
		h.kill()
		r.awaitPhase(d, Reconnecting)
		h.startOldstyle(x.export())
		r.awaitPhase(d, Attached)
	}
	l.progress(t, 20)

	h.kill()
	small := newDisk("one")
	small.resize(diskSize / 2)
	h.startOldstyle(small.export())
	if st := r.awaitPhase(d, Refused); !strings.Contains(st.Reason, "fewer than the device's") {
		t.Errorf("a smaller export: %q", st.Reason)
	}
	h.kill()
	h.startOldstyle(x.hide(proto.FlagSendTrim).Exports[0])
	r.await(d, "the missing flag", func(st State) bool { return strings.Contains(st.Reason, "NBD_FLAG_SEND_TRIM") })
	h.kill()
	h.startOldstyle(x.export())
	r.awaitPhase(d, Attached)
	l.progress(t, 20)
	if err := l.end(); err != nil {
		t.Error(err)
	}
}

// Who names an export, or wants TLS, is not given whatever an old server has.
func TestOldstyleRefused(t *testing.T) {
	r, h := newRig(t), newHost(t, "tcp")
	h.startOldstyle(newDisk("one").export())
	s := r.supervisor()
	for _, spec := range []*Spec{
		{URIs: []string{h.uri()}},
		{URIs: []string{strings.Replace(h.oldURI(), "nbd:", "nbds:", 1)}},
		{URIs: []string{h.oldURI()}, TLS: &TLSFiles{Insecure: true}},
	} {
		if d, err := s.Attach(r.ctx(), spec); !errors.Is(err, proto.ErrOldstyle) {
			t.Errorf("%+v: %v, %v", spec, d, err)
		}
	}
}
