package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"nbd.example/nbd/internal/backoff"
	"nbd.example/nbd/internal/daemon"
	"nbd.example/nbd/kernel"
	"nbd.example/nbd/supervise"
)

// adoptLimit bounds the wait for others who attach what a service wants to adopt.
const adoptLimit = 5 * time.Second

// supervisor keeps devices as a service: those of nbdtab that are to be attached at
// boot, those that a process has left, and those that others hand to it.
func (p *program) supervisor(ctx context.Context) int {
	r := p.resuming()
	if r == nil && p.flags.SystemdMark && !marked(p.env.name) {
		return p.mark()
	}
	specs, swap, err := p.autos()
	if err != nil {
		return p.fail(ctx, err)
	}
	// Whatever can go wrong with this process goes wrong before it takes anything over.
	k, err := p.newKeeper(ctx, p.flags.Swap || swap)
	if err != nil {
		return p.fail(ctx, err)
	}
	defer k.end()
	k.service = true
	t := time.NewTicker(p.env.look)
	defer t.Stop()
	k.look = t.C
	if err := k.replace(ctx); err != nil {
		return p.fail(ctx, err)
	}
	k.retry = backoff.New(5*p.env.look, 100*p.env.look)
	k.adopt(ctx)
	inner, cancel := context.WithCancel(ctx)
	var attaching sync.WaitGroup
	k.attachAll(inner, &attaching, specs)
	k.again = func() { p.reload(inner, k, &attaching) }
	status := k.keep(ctx)
	cancel()
	attaching.Wait()
	return status
}

// replace takes the place of a service that runs already, and takes over its devices.
func (k *keeper) replace(ctx context.Context) error {
	ctx, cancel := context.WithTimeoutCause(ctx, patience, errTime)
	defer cancel()
	path := supervise.ServicePath(k.p.dir())
	took := false
	var failed error
	err := poll(ctx, func() (bool, error) {
		failed = k.s.TakeOver(ctx, path)
		switch {
		case failed == nil:
			took = true
			k.p.log.Info("took over from the supervisor that ran before")
		case errors.Is(failed, os.ErrNotExist), errors.Is(failed, syscall.ECONNREFUSED):
		case errors.Is(failed, supervise.ErrClosed), errors.Is(failed, supervise.ErrHandedOver), errors.Is(failed, supervise.ErrHungUp):
			return false, nil // it ends, or makes way for another one
		default:
			return false, fmt.Errorf("take the devices of the supervisor that runs already: %w", failed)
		}
		// Before anything is adopted, so that its file says where to find this process.
		failed = k.s.Listen(path)
		if errors.Is(failed, daemon.ErrInUse) {
			return false, nil // yet another one was faster
		}
		return failed == nil, failed
	})
	switch {
	case err == nil:
	case took:
		k.p.log.Error("the devices are kept, but nobody can ask this process for anything", "error", err)
		return nil
	case errors.Is(err, errTime):
		err = fmt.Errorf("take the place of the supervisor that runs already: not possible for %v: %w", patience, failed)
	}
	return err
}

// adopt takes over what nobody keeps. For what it cannot take over it is called again, more
// and more rarely: nobody else will keep that.
func (k *keeper) adopt(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, adoptLimit)
	defer cancel()
	devices, err := k.s.Adopt(ctx, k.unadopted...)
	said := ""
	if err != nil {
		said = err.Error()
	}
	if said != "" && said != k.said {
		k.p.logLines(err)
	}
	k.said, k.unadopted = said, supervise.Unadopted(err)
	k.due = time.Now().Add(k.retry.Next())
	for _, d := range devices {
		st := d.Status()
		k.p.log.Info("kept on", "device", st.Device, "identifier", st.Identifier)
	}
}

// autos returns the devices of nbdtab that are to be attached at boot, and whether one
// of them is for swap. A line with an error is logged, and does no harm to the others.
func (p *program) autos() (list []*supervise.Spec, swap bool, err error) {
	t, err := p.table()
	if err != nil {
		return nil, false, err
	}
	for _, e := range t.Entries {
		if e.Err != nil {
			p.logLines(e.Err)
			continue
		}
		f := e.Flags
		if !f.Auto {
			continue
		}
		spec, err := p.spec(f)
		switch {
		case err != nil:
			p.log.Error(fmt.Sprintf("%s:%d: %v", t.Name, e.Line, err))
			continue
		case f.NoSupervise || f.PreInit || f.NoNetlink:
			p.log.Error(fmt.Sprintf("%s:%d: a device that is not supervised cannot be kept: attach it by nbd-client %s", t.Name, e.Line, e.Device))
			continue
		}
		spec.Wait = true
		if f.Swap {
			swap = true
			p.warnOfTLS(f)
		}
		list = append(list, spec)
	}
	return list, swap, nil
}

// attachAll attaches devices, all at the same time, for as long as it takes.
func (k *keeper) attachAll(ctx context.Context, wg *sync.WaitGroup, specs []*supervise.Spec) {
	for _, spec := range specs {
		wg.Go(func() {
			st, err := k.p.attachAs(ctx, spec, func(spec *supervise.Spec) (*supervise.State, error) {
				d, err := k.s.Attach(ctx, spec)
				if err != nil {
					return nil, err
				}
				st := d.Status()
				return &st, nil
			})
			switch {
			case ctx.Err() != nil:
			case err != nil:
				k.p.log.Error("cannot attach", "device", spec.Device, "error", err)
			default:
				k.p.log.Info("attached", "device", st.Device, "identifier", st.Identifier)
			}
			k.poke()
		})
	}
}

// reload reads nbdtab again, and attaches what has come to it.
func (p *program) reload(ctx context.Context, k *keeper, wg *sync.WaitGroup) {
	specs, swap, err := p.autos()
	if err == nil && swap {
		err = p.lockMemory()
	}
	if err != nil {
		p.logLines(err)
		return
	}
	var list []*supervise.Spec
	for _, s := range specs {
		i, err := kernel.ParseIndex(s.Device)
		if err == nil && k.s.Device(i) == nil {
			list = append(list, s)
		}
	}
	p.log.Info("read nbdtab again", "new devices", len(list))
	k.attachAll(ctx, wg, list)
}
