package supervise

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"

	"nbd.example/nbd/kernel"
	"nbd.example/nbd/supervise/pass"
)

// release lets go of a device, which stays attached for another process to adopt.
func (d *Device) release(ctx context.Context, why error) error {
	if err := d.detaching.Take(ctx); err != nil {
		return err
	}
	defer d.detaching.Give()
	d.stop()
	return d.letGo(ctx, why)
}

// letGo is release for a device whose keeper has stopped, and that nobody else detaches.
func (d *Device) letGo(ctx context.Context, why error) error {
	if d.Err() != nil {
		return nil
	}
	d.update(func(st *State) { st.Phase, st.Process, st.Control = Released, Process{}, "" })
	err := d.sup.worker.Flush(ctx)
	d.end(why, Released, false)
	return err
}

// Close ends the supervisor. With keep its devices stay attached, for the next
// supervisor to adopt; without, all are detached, and those that are in use are left
// attached and named in the error. What Spec.Serve serves ends in any case.
func (s *Supervisor) Close(ctx context.Context, keep bool) error {
	s.mu.Lock()
	first := !s.closed
	s.closed = true
	s.mu.Unlock()
	if !first {
		<-s.done
		return nil
	}
	s.stopListening()
	var failed errorList
	var wg sync.WaitGroup
	for _, d := range s.Devices() {
		wg.Go(func() {
			if !keep {
				failed.add(d.Detach(ctx, false))
			}
			if d.Err() == nil {
				failed.add(d.release(ctx, ErrClosed))
			}
		})
	}
	wg.Wait()
	s.dropInherited(nil)
	failed.add(s.worker.Close(ctx))
	s.unwatch()
	s.poller.Close()
	s.finish()
	s.async.Close(ctx)
	return errors.Join(failed.list...)
}

// finish closes done, once.
func (s *Supervisor) finish() {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.done:
	default:
		close(s.done)
	}
}

// errorList collects errors of several goroutines.
type errorList struct {
	mu   sync.Mutex
	list []error
}

func (l *errorList) add(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.list = append(l.list, err)
}

// pause keeps devices from coming, because all of them are about to be passed on, until
// resume is called, which says whether they were. It fails if attachments are under way
// that must not be.
func (s *Supervisor) pause(pendingToo bool) (resume func(handed bool), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.handed:
		return nil, ErrHandedOver
	case s.closed:
		return nil, ErrClosed
	case s.paused != nil:
		return nil, fmt.Errorf("%w, or is about to", ErrHandedOver)
	case !pendingToo && len(s.pending) > 0:
		return nil, fmt.Errorf("%d devices are being attached: try again when that is done", len(s.pending))
	}
	paused := make(chan struct{})
	s.paused = paused
	return func(handed bool) {
		s.mu.Lock()
		s.paused, s.handed = nil, handed
		s.mu.Unlock()
		close(paused)
	}, nil
}

// halt stops the keepers of all devices, and keeps others from detaching them, until goOn
// is called. It returns the sockets that can be passed on. What is being detached is waited
// for, and meanwhile all others are kept.
func (s *Supervisor) halt(ctx context.Context) (devices []*Device, sockets []Socket, err error) {
	devices = s.Devices()
	for busy := takeAll(devices); busy != nil; busy = takeAll(devices) {
		if err := busy.detaching.Take(ctx); err != nil {
			return nil, nil, fmt.Errorf("%s is being detached: %w", busy.st.Device, err)
		}
		busy.detaching.Give()
	}
	for _, d := range devices {
		d.stop()
		d.mu.Lock()
		sockets = append(sockets, d.sockets()...)
		d.mu.Unlock()
	}
	return devices, sockets, nil
}

// takeAll takes the turns of all devices, or none, and returns one that has no turn to give.
func takeAll(devices []*Device) (busy *Device) {
	for i, d := range devices {
		if d.detaching.TryTake() {
			continue
		}
		for _, d := range devices[:i] {
			d.detaching.Give()
		}
		return d
	}
	return nil
}

// goOn undoes halt.
func (s *Supervisor) goOn(devices []*Device) {
	for _, d := range devices {
		if d.Err() == nil {
			d.start(true)
		}
		d.detaching.Give()
	}
}

// handOver gives the sockets of all devices to pass, and lets go of the devices if the
// receiver has them. If not, all goes on as before.
func (s *Supervisor) handOver(ctx context.Context, pass func([]Socket) error) ([]handed, error) {
	resume, err := s.pause(true)
	if err != nil {
		return nil, err
	}
	devices, sockets, err := s.halt(ctx)
	if err == nil {
		err = pass(sockets)
	}
	if err != nil {
		s.goOn(devices)
		resume(false)
		s.log.Warn("the devices were not taken over, and are kept on", "err", err)
		return nil, fmt.Errorf("hand over: %w", err)
	}
	list := s.handing(devices)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.times.call)
	defer cancel()
	for _, d := range devices {
		if d.local != nil {
			d.log.Warn("what this process serves ends with it: the next one serves it anew, if its contents last")
		}
		if err := d.letGo(ctx, ErrHandedOver); err != nil {
			d.log.Warn("the state file does not say that another process keeps the device now", "err", err)
		}
		d.detaching.Give()
	}
	resume(true)
	return list, nil
}

// handed says that processes have let go of a device, one after the other, whatever its
// file says: they may have had no room to write it.
type handed struct {
	Index      kernel.Index `json:"index"`
	Identifier string       `json:"identifier"`
	Processes  []Process    `json:"processes"`
}

// handing returns what is to be said of devices that are passed on, and of those that were
// passed on to this process, and that it does not keep.
func (s *Supervisor) handing(devices []*Device) (list []handed) {
	s.mu.Lock()
	defer s.mu.Unlock()
	former := maps.Clone(s.former)
	for _, d := range devices {
		h := handed{Index: d.index, Identifier: d.identifier()}
		if f, ok := former[d.index]; ok && f.Identifier == h.Identifier {
			h.Processes = slices.Clone(f.Processes)
		}
		delete(former, d.index)
		h.Processes = append(h.Processes, s.self)
		list = append(list, h)
	}
	return slices.AppendSeq(list, maps.Values(former))
}

// Reexec replaces the process by another program, usually by its own newer version,
// which inherits the sockets: it finds them by [Inherit]. It does not return unless it
// fails; then all goes on as before. Devices that Spec.Serve serves from this process
// would lose their server, and make it fail, and so does one that is being attached;
// what is to be attached from then on waits. Devices behind a relay reconnect. What was
// logged is passed on before, and the handler of Config.Log is asked to Flush, if it can.
func (s *Supervisor) Reexec(program string, args, env []string) error {
	resume, err := s.pause(false)
	if err != nil {
		return fmt.Errorf("replace the process: %w", err)
	}
	defer resume(false)
	for _, d := range s.Devices() {
		if d.local != nil {
			return fmt.Errorf("replace the process: it serves %s itself: detach that first", d.st.Device)
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), s.times.call)
	defer cancel()
	devices, sockets, err := s.halt(ctx)
	if err != nil {
		return fmt.Errorf("replace the process: %w", err)
	}
	defer s.goOn(devices)
	s.worker.Flush(ctx) // should it fail, the sockets are adopted by an older file, or offered anew
	s.async.Flush(ctx)
	return fmt.Errorf("replace the process by %s: %w", program, pass.Exec(program, args, env, sockets))
}
