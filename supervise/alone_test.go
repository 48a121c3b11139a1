package supervise

import (
	"errors"
	"strings"
	"testing"
)

// What nobody keeps is not attached again by who wants it kept, and he is told, also through
// a control socket.
func TestAttachAlone(t *testing.T) {
	r, h := newRig(t), newHost(t, "tcp")
	h.serve(newDisk("one"))
	spec := &Spec{URIs: []string{h.uri()}, OnFailure: Policy{Fail: true}}
	s := r.supervisor()
	st, err := s.AttachAlone(r.ctx(), spec)
	if err != nil {
		t.Fatal(err)
	}
	if st.Phase != Unkept || st.Device == "" || alive(r.k.Device(st.Index)) != 1 || len(s.Devices()) != 0 {
		t.Errorf("%+v", st)
	}
	if list, err := States(r.dir); len(list) != 0 || err != nil {
		t.Errorf("there is a file: %+v, %v", list, err)
	}
	again, err := s.AttachAlone(r.ctx(), spec)
	if err != nil || again.Index != st.Index || again.Phase != Unkept {
		t.Errorf("again: %+v, %v", again, err)
	}
	if _, err := s.AttachAlone(r.ctx(), &Spec{URIs: []string{h.uri()}, ReadOnly: true}); err == nil || !strings.Contains(err.Error(), "can be written") {
		t.Errorf("read-only: %v", err)
	}
	_, here := s.Attach(r.ctx(), spec)
	_, there := r.listen().Attach(r.ctx(), spec)
	for _, err := range []error{here, there} {
		var attached *AttachedError
		if !errors.As(err, &attached) || attached.State.Phase != Unkept || !strings.Contains(err.Error(), "no process keeps it") {
			t.Errorf("kept: %v", err)
		}
	}
	if err := r.k.Open().Disconnect(r.ctx(), st.Index); err != nil {
		t.Fatal(err)
	}
}

// What is known already, kept here or by others, is what AttachAlone returns.
func TestAttachAloneKept(t *testing.T) {
	r, h := newRig(t), newHost(t, "tcp")
	h.serve(newDisk("one"))
	d, _ := r.attach(&Spec{URIs: []string{h.uri()}})
	for _, s := range []*Supervisor{r.s, r.supervisor()} {
		if st, err := s.AttachAlone(r.ctx(), &Spec{URIs: []string{h.uri()}}); err != nil || st.Index != d.Index() || st.Phase != Attached {
			t.Errorf("%+v, %v", st, err)
		}
	}
}

// Nothing that needs a process is left alone, and nothing kept of which nothing is known.
func TestAloneRefused(t *testing.T) {
	r, h := newRig(t), newHost(t, "tcp")
	h.serve(newDisk("one"))
	s := r.supervisor()
	if _, err := s.AttachAlone(r.ctx(), &Spec{Serve: "memory:1M"}); err == nil || !strings.Contains(err.Error(), "needs that process") {
		t.Errorf("a chain: %v", err)
	}
	for _, size := range []int64{0, diskSize} {
		if _, err := s.Attach(r.ctx(), &Spec{URIs: []string{h.uri()}, Bare: true, Size: size}); err == nil {
			t.Errorf("a bare connection is kept, of an export of %d bytes", size)
		}
	}
	if _, err := s.AttachAlone(r.ctx(), &Spec{URIs: []string{h.uri()}, Bare: true}); err == nil || !strings.Contains(err.Error(), "the size of an export is not known") {
		t.Errorf("without a size: %v", err)
	}
}

// What was detached by force, and is still mounted, does not keep its export from being
// attached anew.
func TestAttachBesideLeft(t *testing.T) {
	for _, kept := range []bool{false, true} {
		r, h := newRig(t), newHost(t, "tcp")
		h.serve(newDisk("one"))
		s := r.supervisor()
		attach := func() *State {
			t.Helper()
			spec := &Spec{URIs: []string{h.uri()}}
			if !kept {
				st, err := s.AttachAlone(r.ctx(), spec)
				if err != nil {
					t.Fatal(err)
				}
				return st
			}
			d, err := s.Attach(r.ctx(), spec)
			if err != nil {
				t.Fatal(err)
			}
			st := d.Status()
			return &st
		}
		first := attach()
		release, err := r.k.Device(first.Index).Open()
		if err != nil {
			t.Fatal(err)
		}
		if err := r.k.Open().Disconnect(r.ctx(), first.Index); err != nil {
			t.Fatal(err)
		}
		if d := s.Device(first.Index); d != nil {
			<-d.Done()
		}
		if info, err := r.k.Open().Info(first.Index); err != nil || info.PID == 0 {
			t.Fatalf("the kernel does not show it any more: %+v, %v", info, err)
		}
		if second := attach(); second.Index == first.Index || second.Identifier != first.Identifier {
			t.Errorf("kept %v: it is %s as before, or known as %q", kept, second.Device, second.Identifier)
		}
		release()
	}
}
