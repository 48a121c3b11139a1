package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"nbd.example/nbd/internal/backoff"
	"nbd.example/nbd/internal/clientflags"
	"nbd.example/nbd/internal/memlock"
	"nbd.example/nbd/kernel"
	"nbd.example/nbd/supervise"
)

// keeper is a process that keeps devices.
type keeper struct {
	p          *program
	s          *supervise.Supervisor
	driver     kernel.Driver
	signals    <-chan os.Signal
	self       string // this program's file
	background bool   // the process has no terminal
	notifier   *notifier
	// service says that the process stays when there is nothing to keep.
	service bool
	stopped func()
	leaving *leaving // nil unless it was told to end, and waits
	again   func()   // what SIGHUP does; nil for nothing

	followed map[*supervise.Device]bool
	changed  chan struct{}
	// look ticks where devices may come that nobody tells of.
	look <-chan time.Time
	// unadopted are the devices that could not be adopted, said why, and due when that is
	// tried once more.
	unadopted []kernel.Index
	said      string
	due       time.Time
	retry     *backoff.Backoff
}

// closeLimit bounds the end of a supervisor.
const closeLimit = 20 * time.Second

// newKeeper opens the driver and starts to supervise. Before, it prepares for swap if it
// is told to.
func (p *program) newKeeper(ctx context.Context, swap bool) (*keeper, error) {
	k := &keeper{p: p, background: p.child != nil, followed: map[*supervise.Device]bool{}, changed: make(chan struct{}, 1)}
	k.signals, k.stopped = p.signals()
	if swap {
		if err := p.lockMemory(); err != nil {
			return nil, err
		}
		p.warnOfTLS(p.flags)
	}
	var err error
	if k.self, err = os.Executable(); err != nil {
		p.log.Debug("this process cannot be upgraded", "error", err)
	}
	if k.driver, err = p.driver(ctx); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(p.dir(), 0o755); err != nil {
		k.driver.Close()
		return nil, fmt.Errorf("folder for state: %w", err)
	}
	k.s, err = supervise.New(supervise.Config{
		Kernel: k.driver, Dir: p.dir(), Local: p.local, Log: p.log,
		Inherited: p.env.inherited(), Store: supervise.SystemdStore(), Upgrade: k.upgrade,
	})
	if err != nil {
		k.driver.Close()
		return nil, err
	}
	k.notifier = newNotifier(p)
	return k, nil
}

// lockMemory prepares the process for swap, once.
func (p *program) lockMemory() error {
	if p.swap.Load() {
		return nil
	}
	warnings, err := p.env.lockMemory(memlock.Options{RaiseReserve: p.flags.RaiseReserve, SystemOnly: p.alone()})
	for _, w := range warnings {
		p.log.Warn(w.String())
	}
	if err != nil {
		return fmt.Errorf("prepare for swap: %w", err)
	}
	p.swap.Store(true)
	return nil
}

// warnOfTLS says what no program can help.
func (p *program) warnOfTLS(f *clientflags.Flags) {
	if f.UsesTLS() {
		p.log.Warn("swapping over TLS can hang when memory is short: the network's memory is not reserved for the process that decrypts; better swap over a network that needs no TLS")
	}
}

// end gives up what is left.
func (k *keeper) end() {
	k.stopLeaving()
	k.stopped()
	if k.s != nil {
		ctx, cancel := context.WithTimeout(context.Background(), closeLimit)
		defer cancel()
		if err := k.s.Close(ctx, true); err != nil { // nothing, if it is closed already
			k.p.logLines(err)
		}
	}
	if k.driver != nil {
		k.driver.Close()
	}
	k.notifier.end()
}

// signals takes signals from now on, until stop is called.
func (p *program) signals() (signals <-chan os.Signal, stop func()) {
	if p.env.signals != nil {
		return p.env.signals, func() {}
	}
	c := make(chan os.Signal, 8)
	signal.Notify(c, os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	return c, func() { signal.Stop(c) }
}

// stopOnSignal lets a signal end ctx while the device is attached. The function that
// it returns ends that, and returns the signal that came, if one did: perhaps too late.
func (k *keeper) stopOnSignal(ctx *context.Context) (stop func() os.Signal) {
	inner, cancel := context.WithCancelCause(*ctx)
	*ctx = inner
	done := make(chan struct{})
	var came os.Signal
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case sig := <-k.signals:
				if sig == os.Interrupt || sig == syscall.SIGTERM && !k.p.flags.IgnoreTerm {
					came = sig
					cancel(fmt.Errorf("stopped: %v", sig))
				}
			case <-done:
				return
			}
		}
	})
	return func() os.Signal {
		close(done)
		wg.Wait()
		cancel(nil)
		return came
	}
}

// keep keeps the devices until none is left, or a signal comes.
func (k *keeper) keep(ctx context.Context) int {
	if k.background {
		if !k.p.logs.ToSyslog() {
			k.p.log.Warn("there is neither syslog nor a log of the kernel here: nothing will be logged")
		}
		if err := k.p.child.Ready(); err != nil {
			k.p.log.Warn("the process that started this one is gone", "error", err)
		}
	}
	k.p.logs.Started()
	k.notifier.ready(k.statusText())
	for {
		k.follow()
		k.notifier.status(k.statusText())
		if done, status := k.finished(); done {
			return status
		}
		select {
		case <-ctx.Done():
			return k.close(k.service || len(k.bound()) == 0, context.Cause(ctx).Error())
		case <-k.left():
			return k.close(true, k.leaving.why)
		case <-k.s.Done():
			return exitOK
		case <-k.changed:
		case <-k.look:
			if len(k.unadopted) > 0 && time.Now().After(k.due) {
				k.adopt(ctx)
			}
		case <-k.notifier.dog():
			k.notifier.lives()
		case sig := <-k.signals:
			if done, status := k.signal(ctx, sig); done {
				return status
			}
		}
	}
}

// listen opens the control socket. Without it the device is kept all the same; commands
// reach it through the kernel alone then.
func (k *keeper) listen() {
	if err := k.s.Listen(supervise.ControlPath(k.p.dir(), os.Getpid())); err != nil {
		k.p.log.Warn("nobody will be able to speak with the process that keeps the device", "error", err)
	}
}

// signal obeys a signal.
func (k *keeper) signal(ctx context.Context, sig os.Signal) (done bool, status int) {
	switch sig {
	case syscall.SIGHUP:
		if k.again != nil {
			k.again()
		}
		return false, 0
	case os.Interrupt:
		// Somebody sits at the terminal: what he has attached he wants to be rid of.
		if k.service {
			return true, k.close(true, sig.String())
		}
		return k.detachAll(ctx)
	}
	if k.p.flags.IgnoreTerm {
		k.p.log.Info("ignored: " + sig.String())
		return false, 0
	}
	return k.terminate(ctx, sig)
}

// detachUnused detaches what nobody uses, for a machine that goes down: no next process
// will come, and the servers are told that they will not be asked again. What is in use
// stays attached, so that it can still be unmounted.
func (k *keeper) detachUnused(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, closeLimit)
	defer cancel()
	var wg sync.WaitGroup
	for _, d := range k.s.Devices() {
		wg.Go(func() {
			if err := d.Detach(ctx, false); err != nil && !isDetached(err) {
				k.p.log.Info("left attached, while the system goes down", "error", err)
			}
		})
	}
	wg.Wait()
}

// detachAll detaches everything, or says what is in use.
func (k *keeper) detachAll(ctx context.Context) (done bool, status int) {
	ctx, cancel := context.WithTimeout(ctx, closeLimit)
	defer cancel()
	for _, d := range k.s.Devices() {
		if err := d.Detach(ctx, false); err != nil && !isDetached(err) {
			k.p.logLines(err)
			text := "it stays attached; SIGTERM ends this process and leaves it attached"
			if len(k.bound()) > 0 {
				text = "it stays attached; SIGTERM detaches it and ends this process as soon as nobody uses it"
			}
			k.p.log.Info(text)
			return false, 0
		}
	}
	return true, k.close(true, "detached")
}

// close ends the supervisor.
func (k *keeper) close(keep bool, why string) int {
	k.stopLeaving()
	k.p.log.Info("ends", "why", why)
	if keep {
		k.sayWaiting()
	}
	k.notifier.stopping()
	ctx, cancel := context.WithTimeout(context.Background(), closeLimit)
	defer cancel()
	if err := k.s.Close(ctx, keep); err != nil {
		k.p.logLines(err)
		return exitError
	}
	return exitOK
}

// finished reports whether nothing is left to keep, and how that came.
func (k *keeper) finished() (done bool, status int) {
	if k.service {
		return false, 0
	}
	for d := range k.followed {
		select {
		case <-d.Done():
			if err := d.Err(); !isDetached(err) {
				k.p.logLines(err)
				status = exitError
			}
		default:
			return false, 0
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), closeLimit)
	defer cancel()
	if err := k.s.Close(ctx, true); err != nil {
		k.p.logLines(err)
	}
	return true, status
}

// isDetached tells ends of devices that are no fault.
func isDetached(err error) bool {
	for _, end := range []error{supervise.ErrDetached, supervise.ErrTakenAway, supervise.ErrHandedOver, supervise.ErrClosed} {
		if errors.Is(err, end) {
			return true
		}
	}
	return err == nil
}

// follow sends to k.changed when something happens to a device. Devices can come at any
// time, through the control socket.
func (k *keeper) follow() {
	for _, d := range k.s.Devices() {
		if k.followed[d] {
			continue
		}
		k.followed[d] = true
		if d.Status().Spec.Swap { // it may come from a process before, or another one
			if err := k.p.lockMemory(); err != nil {
				k.p.log.Error("this process keeps swap, and is not prepared for that", "device", d.Index().Path(), "error", err)
			}
		}
		k.p.env.announce(d.Index())
		go func() {
			for {
				changed := d.Changed()
				k.poke()
				select {
				case <-changed:
				case <-d.Done():
					k.poke()
					return
				}
			}
		}()
	}
	for d := range k.followed {
		select {
		case <-d.Done():
			if k.service {
				delete(k.followed, d)
			}
		default:
		}
	}
}

// poke wakes keep.
func (k *keeper) poke() {
	select {
	case k.changed <- struct{}{}:
	default:
	}
}

// statusText is what the service manager shows.
func (k *keeper) statusText() string {
	devices := k.s.Devices()
	if k.leaving != nil {
		return k.leaving.text()
	}
	if len(k.unadopted) > 0 {
		return fmt.Sprintf("%d devices, and %d that cannot be taken over: %s", len(devices), len(k.unadopted), k.said)
	}
	if len(devices) == 1 {
		st := devices[0].Status()
		return fmt.Sprintf("%s %s: %s", st.Device, st.Identifier, st.Phase)
	}
	bad := 0
	for _, d := range devices {
		if d.Status().Phase != supervise.Attached {
			bad++
		}
	}
	return fmt.Sprintf("%d devices, %d of them not wholly connected", len(devices), bad)
}
