package supervise

import (
	"strings"
	"testing"
	"time"

	"nbd.example/nbd/proto"
)

// A device that is attached already is returned only if that is what was wanted.
func TestAttachDifferent(t *testing.T) {
	r, h := newRig(t), newHost(t, "unix")
	h.serve(newDisk("one"))
	first, dev := r.attach(&Spec{URIs: []string{h.uri()}})
	attach := func(spec Spec, want string) {
		t.Helper()
		spec.URIs = []string{h.uri()}
		d, err := r.s.Attach(r.ctx(), &spec)
		switch {
		case want == "" && (err != nil || d.Index() != first.Index()):
			t.Errorf("%+v: %v", spec, err)
		case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
			t.Errorf("%+v: %v, want %q", spec, err, want)
		}
	}
	different := func() {
		t.Helper()
		attach(Spec{}, "")
		attach(Spec{BlockSize: 512}, "")
		attach(Spec{Timeout: time.Minute, Connections: 3}, "")
		attach(Spec{ReadOnly: true}, "can be written")
		attach(Spec{BlockSize: 4096}, "blocks of 512 bytes and not of 4096")
	}
	different()
	// Nobody keeps it: what does not suit is not adopted.
	r.s.crash()
	r.supervisor()
	attach(Spec{ReadOnly: true}, "can be written")
	if len(r.s.Devices()) != 0 {
		t.Error("it was adopted")
	}
	different()
	if err := r.s.Devices()[0].Detach(r.ctx(), false); err != nil {
		t.Fatal(err)
	}
	first, _ = r.attach(&Spec{URIs: []string{h.uri()}, ReadOnly: true})
	attach(Spec{}, "read-only, which is not wanted")
	attach(Spec{ReadOnly: true}, "")
	if dev.Attached().Flags&proto.FlagReadOnly == 0 {
		t.Error("it is not read-only")
	}
}

func TestSuits(t *testing.T) {
	for _, c := range []struct {
		spec    Spec
		ignored string
	}{
		{Spec{}, ""},
		{Spec{URIs: []string{"nbd://a/x"}, Connections: 2, Timeout: time.Minute}, ""},
		{Spec{URIs: []string{"nbd://b/x"}, Connections: 1, Timeout: -1}, "the servers, the number of connections, the request timeout"},
		{Spec{TLS: &TLSFiles{CA: "/ca"}, AnyInstance: true, OnFailure: Policy{Fail: true}}, "what happens on failure, TLS, any instance"},
		{Spec{Serve: "null:1M", Size: 4096, Swap: true}, "the chain, the size, swap"},
	} {
		st := &State{BlockSize: 512, Spec: Spec{URIs: []string{"nbd://a/x"}, Connections: 2, Timeout: time.Minute}}
		ignored, err := st.Suits(&c.spec)
		if got := strings.Join(ignored, ", "); got != c.ignored || err != nil {
			t.Errorf("%+v: %q, %v", c.spec, got, err)
		}
	}
	// One whose server does not let it be written suits who only wants to read.
	st := &State{BlockSize: 512, Flags: proto.FlagReadOnly}
	if ignored, err := st.Suits(&Spec{ReadOnly: true}); err != nil || len(ignored) > 0 {
		t.Error(ignored, err)
	}
	if _, err := st.Suits(&Spec{}); err != nil {
		t.Error(err)
	}
}
