package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"nbd.example/nbd/internal/daemon"
	"nbd.example/nbd/kernel"
	"nbd.example/nbd/supervise"
)

// attach attaches one device, as the command line or nbdtab describes it.
func (p *program) attach(ctx context.Context) int {
	if r := p.resuming(); r != nil {
		return p.resume(ctx, r)
	}
	if p.flags.Tab != "" {
		if err := p.lookUp(); err != nil {
			return p.fail(ctx, err)
		}
	}
	spec, err := p.spec(p.flags)
	if err != nil {
		return p.fail(ctx, err)
	}
	if p.flags.Persist && (p.flags.NoNetlink || p.flags.PreInit) {
		p.warn("-persist has no effect with -nonetlink or -preinit: such a device cannot be connected anew when its connections die")
	}
	switch {
	case p.alone():
		return p.attachAlone(ctx, spec)
	case p.child != nil:
		return p.keepOne(ctx, spec)
	}
	if p.handsOver() {
		if done, status := p.handOver(ctx, spec); done {
			return status
		}
	}
	if p.flags.SystemdMark && !marked(p.env.name) {
		return p.mark()
	}
	if p.foreground() {
		return p.keepOne(ctx, spec)
	}
	status, err := daemon.StartAs(p.env.name, p.args, p.env.stdout, p.env.stderr)
	if err != nil {
		return p.fail(ctx, err)
	}
	return status
}

// lookUp completes the flags by what nbdtab says of the device.
func (p *program) lookUp() error {
	t, err := p.table()
	if err != nil {
		return err
	}
	e, err := t.Find(p.flags.Tab)
	if err != nil {
		return err
	}
	p.flags = p.flags.Over(e.Flags)
	return p.flags.Check()
}

// foreground reports whether this process itself keeps the device. A service manager
// that waits for a message wants the process that it has started.
func (p *program) foreground() bool {
	return !daemon.Supported || p.flags.Foreground || p.notified()
}

// handsOver reports whether a supervisor that runs as a service may keep the device.
// Those that are kept in a special way need a process of their own, and so does what the
// process serves itself: a service can be replaced at any time, and what it serves cannot.
func (p *program) handsOver() bool {
	f := p.flags
	return !p.foreground() && !f.SystemdMark && !f.IgnoreTerm && !f.Swap && !f.NoNetlink && f.Serve == ""
}

// handOver lets the supervisor attach the device that runs as a service, if one does.
func (p *program) handOver(ctx context.Context, spec *supervise.Spec) (done bool, status int) {
	c, err := supervise.Dial(ctx, supervise.ServicePath(p.dir()))
	switch {
	case errors.Is(err, os.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return false, 0
	case err != nil:
		p.log.Debug("no supervisor to hand the device to", "error", err)
		return false, 0
	}
	defer c.Close()
	each := max(spec.ConnectTimeout, 10*time.Second)
	limit := p.flags.Retry + time.Duration(len(spec.URIs))*each + patience
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("no answer of the supervisor in %v", limit))
	defer cancel()
	st, err := p.attachAs(ctx, spec, func(spec *supervise.Spec) (*supervise.State, error) { return c.Attach(ctx, spec) })
	if err != nil {
		return true, p.fail(ctx, err)
	}
	p.log.Debug("the supervisor keeps the device", "pid", st.Process.PID)
	return true, p.tell(p.printDevice(st.Device))
}

// attachAs attaches by try. The same export may be attached to another device already.
// If the caller wants a certain device, and no certain identifier, that is no
// contradiction: he gets a second one, which is identified by its name, too.
func (p *program) attachAs(ctx context.Context, spec *supervise.Spec, try func(*supervise.Spec) (*supervise.State, error)) (*supervise.State, error) {
	if second := p.second(ctx, spec); second != nil {
		spec = second
	}
	st, err := attachedState(try(spec))
	if err != nil {
		return nil, err
	}
	if spec.Device == "" || st.Device == spec.Device {
		return p.suiting(st, spec)
	}
	if spec.Identifier != "" {
		return nil, fmt.Errorf("%q is attached already, as %s, and not as %s: detach it first, or give the second one another identifier (-i)", st.Identifier, st.Device, spec.Device)
	}
	second := *spec
	second.Identifier = secondIdentifier(st.Identifier, spec.Device)
	p.log.Debug("the export is attached a second time", "first", st.Device, "identifier", second.Identifier)
	st, err = attachedState(try(&second))
	switch {
	case err != nil:
		return nil, err
	case st.Device != spec.Device:
		return nil, fmt.Errorf("%q is attached already, as %s", st.Identifier, st.Device)
	}
	return p.suiting(st, &second)
}

// secondIdentifier is that of an export's device beside its first one.
func secondIdentifier(identifier, device string) string {
	return identifier + "#" + filepath.Base(device)
}

// second returns spec with the identifier of a second device, if that is what the device
// that it names has: it may be the only one by now. Nil if not.
func (p *program) second(ctx context.Context, spec *supervise.Spec) *supervise.Spec {
	if spec.Device == "" || spec.Identifier != "" {
		return nil
	}
	first, err := spec.KnownAs()
	if err != nil {
		return nil // whoever attaches it says so
	}
	v, err := p.find(ctx, spec.Device)
	if err != nil || !v.connected || v.identifier() != secondIdentifier(first, spec.Device) {
		return nil
	}
	second := *spec
	second.Identifier = v.identifier()
	return &second
}

// attachedState returns the state of a device also if another process keeps it.
func attachedState(st *supervise.State, err error) (*supervise.State, error) {
	var attached *supervise.AttachedError
	if errors.As(err, &attached) {
		return &attached.State, nil
	}
	return st, err
}

// suiting returns the state of a device that was attached, perhaps before, if it is what
// was wanted.
func (p *program) suiting(st *supervise.State, spec *supervise.Spec) (*supervise.State, error) {
	if st.Phase == supervise.Unkept && !p.alone() {
		return nil, &supervise.AttachedError{State: *st}
	}
	ignored, err := st.Suits(spec)
	if err != nil {
		return nil, err
	}
	if len(ignored) > 0 {
		p.log.Warn(fmt.Sprintf("%s is attached already, and stays as it is: %s would have to be changed by attaching it anew", st.Device, strings.Join(ignored, ", ")))
	}
	return st, nil
}

// printDevice prints which device it is.
func (p *program) printDevice(path string) error {
	_, err := fmt.Fprintln(p.env.stdout, path)
	return err
}

// keepOne attaches a device and keeps it, in this process.
func (p *program) keepOne(ctx context.Context, spec *supervise.Spec) int {
	k, err := p.newKeeper(ctx, p.flags.Swap)
	if err != nil {
		return p.fail(ctx, err)
	}
	defer k.end()
	k.listen()
	limit, cancel := p.retrying(ctx)
	defer cancel()
	stop := k.stopOnSignal(&limit)
	var own *supervise.Device
	st, err := p.attachAs(ctx, spec, func(spec *supervise.Spec) (*supervise.State, error) {
		d, err := k.s.Attach(limit, spec)
		if err != nil {
			return nil, err
		}
		own = d
		st := d.Status()
		return &st, nil
	})
	sig := stop()
	if err != nil {
		return p.fail(ctx, err)
	}
	if own == nil { // another process keeps it
		return p.already(ctx, k, st)
	}
	if err := p.printDevice(st.Device); err != nil {
		p.log.Warn("cannot print the device's name", "error", err)
	}
	if sig != nil {
		if done, status := k.signal(ctx, sig); done {
			return status
		}
	}
	return k.keep(ctx)
}

// retrying bounds ctx by how long a server is to be tried.
func (p *program) retrying(ctx context.Context) (context.Context, context.CancelFunc) {
	if p.flags.Retry == 0 {
		return ctx, func() {}
	}
	return context.WithTimeoutCause(ctx, p.flags.Retry, fmt.Errorf("no server in %v", p.flags.Retry))
}

// already ends the process that found the device attached. Under a service manager it
// stays, and ends as well when that device is kept no more: the next one takes it over.
func (p *program) already(ctx context.Context, k *keeper, st *supervise.State) int {
	p.log.Info(st.Device+" is attached already", "pid", st.Process.PID)
	if err := p.printDevice(st.Device); err != nil {
		return p.tell(err)
	}
	if k.notifier == nil {
		p.logs.Flush()
		return p.tell(p.child.Ready())
	}
	return p.stay(ctx, k.driver, st.Index, k.notifier, k.signals, func() (text string, ok bool) {
		v := p.view(ctx, k.driver, kernel.Status{Index: st.Index, Connected: true}, p.states())
		if !v.kept() {
			return fmt.Sprintf("%s %s: kept by no process", st.Device, st.Identifier), false
		}
		return fmt.Sprintf("%s %s: kept by process %d", st.Device, st.Identifier, v.process()), true
	})
}
