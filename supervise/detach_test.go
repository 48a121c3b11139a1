package supervise

import (
	"context"
	"errors"
	"io/fs"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"nbd.example/nbd/kernel"
	"nbd.example/nbd/kernel/kerneltest"
)

// A device that is in use is not detached, and the error says by whom.
func TestDetachBusy(t *testing.T) {
	r, h := newRig(t), newHost(t, "unix")
	h.serve(newDisk("one"))
	d, dev := r.attach(&Spec{URIs: []string{h.uri()}})
	r.s.times.open = 20 * time.Millisecond
	for _, c := range []struct {
		set  func(*kernel.Info)
		want string
	}{
		{func(i *kernel.Info) { i.Mounts = []string{"/mnt"} }, "mounted on /mnt"},
		{func(i *kernel.Info) { i.Holders = []string{"dm-0"} }, "held by dm-0"},
		{func(i *kernel.Info) { i.Swap = true }, "swap space"},
		{func(i *kernel.Info) { i.Openers = []kernel.Opener{{PID: 4711, Command: "dd"}} }, "process 4711 (dd)"},
	} {
		dev.SetInfo(c.set)
		err := d.Detach(r.ctx(), false)
		var busy *BusyError
		if !errors.As(err, &busy) || busy.Forced || !errors.Is(err, kernel.ErrBusy) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v, want %q", err, c.want)
		}
	}
	// Nothing in the system's tables shows a mount in another namespace.
	dev.SetInfo(nil)
	release, err := dev.Claim()
	if err != nil {
		t.Fatal(err)
	}
	err = d.Detach(r.ctx(), false)
	if !errors.Is(err, kernel.ErrBusy) || !strings.Contains(err.Error(), "such as a mount in another mount namespace") {
		t.Errorf("claimed by somebody who does not show: %v", err)
	}
	release()
	// Nor does it where the device has no node.
	r.k.Intercept(func(_ context.Context, op kerneltest.Op, _ kernel.Index) error {
		if op == kerneltest.OpClaim {
			return fs.ErrNotExist
		}
		return nil
	})
	if err := d.Detach(r.ctx(), false); err == nil || !strings.Contains(err.Error(), "cannot be found out") {
		t.Errorf("without a node: %v", err)
	}
	r.k.Intercept(nil)
	// Who has it open for a moment only is waited for.
	r.s.times.open = hang
	var asked atomic.Int64
	dev.SetInfo(func(i *kernel.Info) {
		if asked.Add(1) < 5 {
			i.Openers = []kernel.Opener{{PID: 1, Command: "udevd"}}
		}
	})
	if dev.Attached() == nil || d.Status().Phase != Attached {
		t.Error("the device that was in use is detached")
	}
	if err := d.Detach(r.ctx(), false); err != nil {
		t.Error(err)
	}
}

// By force everything ends: what waits for the server that is gone, and what begins.
func TestDetachForce(t *testing.T) {
	for _, hold := range []bool{false, true} {
		r, h := newRig(t), newHost(t, "tcp")
		h.serve(newDisk("one"))
		d, dev := r.attach(&Spec{URIs: []string{h.uri()}, Connections: 2, Timeout: brisk})
		r.s.times.force = hang
		if hold {
			r.s.times.force = 20 * time.Millisecond
			release, err := dev.Claim()
			if err != nil {
				t.Fatal(err)
			}
			defer release()
		}
		h.kill()
		r.awaitPhase(d, Reconnecting)
		result := make(chan error)
		for range 4 {
			go func() {
				_, err := dev.WriteAt(make([]byte, 512), 0)
				result <- err
			}()
		}
		eventually(t, "requests that wait", func() bool { return dev.InFlight() == 4 })
		err := d.Detach(r.ctx(), true)
		var busy *BusyError
		if hold != errors.As(err, &busy) || !hold && err != nil {
			t.Errorf("held %v: %v", hold, err)
		}
		for range 4 {
			if err := <-result; err == nil {
				t.Error("a write to nowhere succeeded")
			}
		}
		if d.Err() != ErrDetached {
			t.Errorf("%v", d.Err())
		}
	}
}

// A kernel that hangs while it detaches is helped by shutting down the sockets; one that
// goes on hanging ends the call, and the device is kept.
func TestDetachHungKernel(t *testing.T) {
	r, h := newRig(t), newHost(t, "unix")
	h.serve(newDisk("one"))
	d, dev := r.attach(&Spec{URIs: []string{h.uri()}})
	r.s.times.call = time.Second
	ctx, cancel := context.WithCancel(r.ctx())
	r.k.Intercept(func(ctx context.Context, op kerneltest.Op, _ kernel.Index) error {
		if op == kerneltest.OpDisconnect {
			cancel()
			<-ctx.Done()
			return ctx.Err()
		}
		return nil
	})
	if err := d.Detach(ctx, true); !errors.Is(err, context.Canceled) || d.Err() != nil {
		t.Errorf("%v, %v", err, d.Err())
	}
	r.k.Intercept(nil)
	// Its connection was shut down, and is replaced.
	r.await(d, "a reconnect", func(st State) bool { return st.Reconnects >= 1 && st.Phase == Attached })
	if _, err := dev.WriteAt(make([]byte, 512), 0); err != nil {
		t.Error(err)
	}
}

// What the kernel does not take in time dies, and is tried again.
func TestHungReconfigure(t *testing.T) {
	r, h, x := newRig(t), newHost(t, "unix"), newDisk("one")
	h.serve(x)
	d, dev := r.attach(&Spec{URIs: []string{h.uri()}, Timeout: brisk})
	var calls atomic.Int64
	r.k.Intercept(func(ctx context.Context, op kerneltest.Op, _ kernel.Index) error {
		if op == kerneltest.OpReconfigure && calls.Add(1) <= 3 {
			return context.DeadlineExceeded
		}
		return nil
	})
	l := startLoad(dev, 2)
	l.progress(t, 10)
	h.kill()
	h.serve(x)
	r.await(d, "a reconnect", func(st State) bool { return st.Reconnects >= 1 && st.Phase == Attached })
	l.progress(t, 10)
	if err := l.end(); err != nil {
		t.Error(err)
	}
	if calls.Load() < 4 {
		t.Errorf("%d calls", calls.Load())
	}
}

// The kernel takes a socket only in place of a dead one, and may learn of the death late.
func TestNotTakenAtFirst(t *testing.T) {
	r, h, x := newRig(t), newHost(t, "unix"), newDisk("one")
	h.serve(x)
	d, dev := r.attach(&Spec{URIs: []string{h.uri()}, Connections: 2, Timeout: brisk})
	var calls atomic.Int64
	r.k.Intercept(func(_ context.Context, op kerneltest.Op, _ kernel.Index) error {
		if op == kerneltest.OpReconfigure && calls.Add(1)%3 != 0 {
			return kernel.ErrNotTaken
		}
		return nil
	})
	l := startLoad(dev, 2)
	l.progress(t, 10)
	h.kill()
	h.serve(x)
	r.await(d, "both reconnected", func(st State) bool { return st.Reconnects >= 2 && st.Phase == Attached })
	l.progress(t, 10)
	if err := l.end(); err != nil {
		t.Error(err)
	}
}
