package supervise

import (
	"context"
	"errors"
	"fmt"
	"sync"
)

// release lets go of a device, which stays attached for another process to adopt. Its
// sockets are given to pass before they are closed here.
func (d *Device) release(ctx context.Context, why error, pass func([]Socket)) error {
	d.detaching.Lock()
	defer d.detaching.Unlock()
	d.stop()
	if d.Err() != nil {
		return nil
	}
	d.update(func(st *State) { st.Phase, st.Process, st.Control = Released, Process{}, "" })
	err := d.sup.worker.flush(ctx)
	d.mu.Lock()
	sockets := d.sockets()
	d.mu.Unlock()
	if pass != nil {
		pass(sockets)
	}
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
				failed.add(d.release(ctx, ErrClosed, nil))
			}
		})
	}
	wg.Wait()
	s.dropInherited()
	failed.add(s.worker.close(ctx))
	s.unwatch()
	s.poller.close()
	s.finish()
	s.async.close(ctx)
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

// handOver lets go of all devices, and gives their sockets to pass.
func (s *Supervisor) handOver(ctx context.Context, pass func([]Socket)) error {
	s.mu.Lock()
	if s.closed || s.handed {
		s.mu.Unlock()
		return ErrClosed
	}
	s.handed = true
	s.mu.Unlock()
	var failed errorList
	for _, d := range s.Devices() {
		if d.local != nil {
			d.log.Warn("what this process serves ends with it: the next one serves it anew, if its contents last")
		}
		failed.add(d.release(ctx, ErrHandedOver, pass))
	}
	s.finish()
	return errors.Join(failed.list...)
}

// Reexec replaces the process by another program, usually by its own newer version,
// which inherits the sockets: it finds them by [Inherit]. It does not return unless it
// fails; then all goes on as before. Devices that Spec.Serve serves from this process
// would lose their server, and make it fail, and so does one that is being attached;
// those behind a relay reconnect.
func (s *Supervisor) Reexec(program string, args, env []string) error {
	devices := s.Devices()
	s.mu.Lock()
	busy := len(s.pending)
	s.mu.Unlock()
	if busy > 0 {
		return fmt.Errorf("replace the process: %d devices are being attached: try again when that is done", busy)
	}
	for _, d := range devices {
		if d.local != nil {
			return fmt.Errorf("replace the process: it serves %s itself: detach that first", d.st.Device)
		}
	}
	var sockets []Socket
	for _, d := range devices {
		d.detaching.Lock()
		d.stop()
		d.mu.Lock()
		sockets = append(sockets, d.sockets()...)
		d.mu.Unlock()
	}
	ctx, cancel := context.WithTimeout(context.Background(), s.times.call)
	defer cancel()
	s.worker.flush(ctx) // should it fail, the sockets are adopted by an older file, or offered anew
	err := execWith(program, args, env, sockets)
	for _, d := range devices {
		if d.Err() == nil {
			d.start(true)
		}
		d.detaching.Unlock()
	}
	return fmt.Errorf("replace the process by %s: %w", program, err)
}
