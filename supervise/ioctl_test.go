package supervise

import (
	"context"
	"errors"
	"os"
	"strings"
	"sync/atomic"
	"testing"

	"nbd.example/nbd/kernel"
	"nbd.example/nbd/kernel/kerneltest"
)

// ioctls is a driver of the old kind: what it has attached cannot be connected again,
// and is gone when the last connection has died.
type ioctls struct{ *kerneltest.Driver }

func (ioctls) Can() kernel.Abilities { return kernel.Abilities{Watch: true, AnyIndex: true} }

func (d ioctls) Watch(ctx context.Context, f func(kernel.Index)) error {
	return d.Driver.Watch(ctx, func(i kernel.Index) {
		d.Disconnect(ctx, i)
		f(i)
	})
}

func TestIoctl(t *testing.T) {
	r, h, x := newRig(t), newHost(t, "unix"), newDisk("one")
	h.serve(x)
	r.cfg.Kernel = ioctls{r.k.Open()}
	d, _ := r.attach(&Spec{URIs: []string{h.uri()}})
	r.s.crash()
	s := r.supervisor()
	if _, err := s.Adopt(r.ctx()); err == nil || !strings.Contains(err.Error(), "ioctl") {
		t.Errorf("adopted: %v", err)
	}
	if err := s.cfg.Kernel.Disconnect(r.ctx(), d.Index()); err != nil {
		t.Fatal(err)
	}
	d, dev := r.attach(&Spec{URIs: []string{h.uri()}})
	h.kill()
	<-d.Done()
	if !errors.Is(d.Err(), ErrLost) || dev.Attached() != nil {
		t.Errorf("%v", d.Err())
	}
	// Nothing is in the way of attaching it anew.
	h.serve(x)
	d, dev = r.attach(&Spec{URIs: []string{h.uri()}})
	if d.Status().Phase != Attached {
		t.Errorf("%+v", d.Status())
	}
	// The process itself has it open, and another one for a moment.
	var asked atomic.Int64
	dev.SetInfo(func(i *kernel.Info) {
		i.Openers = []kernel.Opener{{PID: os.Getpid(), Command: "nbd-client"}}
		if asked.Add(1) < 3 {
			i.Openers = append(i.Openers, kernel.Opener{PID: 1, Command: "udevd"})
		}
	})
	if err := d.Detach(r.ctx(), false); err != nil || asked.Load() < 3 {
		t.Errorf("detached after %d looks: %v", asked.Load(), err)
	}
}

// A device that goes away with its last user is not opened by us.
func TestDisconnectOnClose(t *testing.T) {
	r, h := newRig(t), newHost(t, "unix")
	h.serve(newDisk("one"))
	d, dev := r.attach(&Spec{URIs: []string{h.uri()}, Client: kernel.DisconnectOnClose})
	if d.Err() != nil || dev.Attached() == nil {
		t.Fatalf("%v", d.Err())
	}
	release, err := dev.Open()
	if err != nil {
		t.Fatal(err)
	}
	release()
	<-d.Done()
	if !errors.Is(d.Err(), ErrTakenAway) {
		t.Errorf("%v", d.Err())
	}
}

// What is being detached is not returned to who attaches it again.
func TestAttachWhileDetaching(t *testing.T) {
	r, h := newRig(t), newHost(t, "unix")
	h.serve(newDisk("one"))
	d, _ := r.attach(&Spec{URIs: []string{h.uri()}})
	detaching, goOn := make(chan struct{}), make(chan struct{})
	r.k.Intercept(func(_ context.Context, op kerneltest.Op, _ kernel.Index) error {
		if op == kerneltest.OpDisconnect {
			close(detaching)
			<-goOn
		}
		return nil
	})
	result, ctx := make(chan error), r.ctx()
	go func() { result <- d.Detach(ctx, false) }()
	<-detaching
	r.k.Intercept(nil)
	var again *Device
	attached := make(chan error)
	go func() {
		var err error
		again, err = r.s.Attach(ctx, &Spec{URIs: []string{h.uri()}})
		attached <- err
	}()
	close(goOn)
	if err := errors.Join(<-result, <-attached); err != nil {
		t.Fatal(err)
	}
	if again == d || again.Err() != nil {
		t.Errorf("the device that was detached was returned")
	}
}
