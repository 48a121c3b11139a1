package supervise

import (
	"context"
	"errors"
	"fmt"
	"time"

	"nbd.example/nbd/kernel"
)

// Detach detaches the device and returns when it and its partitions are really gone.
// If it is in use nothing is done, and the error is a [*BusyError]. With force what
// waits fails, and whoever uses it gets errors from then on; the error is a *BusyError,
// too, if somebody still holds the device in the end, which is no longer kept then.
// If ctx ends before the kernel has let go, it is no longer kept either, unless nothing
// was done yet.
func (d *Device) Detach(ctx context.Context, force bool) error {
	d.detaching.Lock()
	defer d.detaching.Unlock()
	if d.Err() != nil {
		return fmt.Errorf("detach %s: %w", d.st.Device, d.Err())
	}
	if !force {
		if err := d.unused(ctx); err != nil {
			return err
		}
	}
	d.stop()
	if d.Err() != nil { // it was taken away meanwhile
		return nil
	}
	d.update(func(st *State) { st.Phase, st.Reason = Detaching, "" })
	if err := d.disconnect(ctx, force); err != nil {
		d.update(func(st *State) { st.Phase, st.Reason = Attached, err.Error() })
		d.start(true)
		return fmt.Errorf("detach %s: %w", d.st.Device, err)
	}
	err := d.awaitGone(ctx, force)
	d.end(ErrDetached, Gone, true)
	d.sup.worker.flush(ctx)
	d.log.Info("detached", "force", force)
	return err
}

// unused waits for a moment in which nobody has the device open, if that may come soon.
func (d *Device) unused(ctx context.Context) error {
	for until := time.Now().Add(d.sup.times.open); ; {
		info, err := d.sup.cfg.Kernel.Info(d.index)
		switch {
		case errors.Is(err, kernel.ErrNoDevice):
			return nil
		case err != nil:
			return fmt.Errorf("detach: %w", err)
		case len(info.Mounts)+len(info.Holders) > 0 || info.Swap:
			return &BusyError{Info: *info}
		case !hasOpeners(info):
			return nil
		case time.Now().After(until):
			return &BusyError{Info: *info}
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return &BusyError{Info: *info}
		}
	}
}

// disconnect has the kernel let go. By force, the sockets are shut down where the
// kernel waits for them: it sends a farewell on each, which a server that hangs may not
// take.
func (d *Device) disconnect(ctx context.Context, force bool) error {
	result := make(chan error, 1)
	go func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), d.sup.times.call)
		defer cancel()
		result <- d.sup.cfg.Kernel.Disconnect(ctx, d.index)
	}()
	var polite <-chan time.Time
	if force {
		polite = time.After(d.sup.times.polite)
	}
	for {
		select {
		case err := <-result:
			if errors.Is(err, kernel.ErrNotConnected) || errors.Is(err, kernel.ErrNoDevice) {
				return nil
			}
			return err
		case <-polite:
			d.killAll()
		case <-ctx.Done():
			if force {
				d.killAll()
			}
			return fmt.Errorf("the kernel does not let go: %w", context.Cause(ctx))
		}
	}
}

// killAll shuts down all sockets that we have.
func (d *Device) killAll() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, s := range d.slots {
		if s.file != nil {
			kill(s.file)
		}
	}
}

// awaitGone waits until nothing is left of the device.
func (d *Device) awaitGone(ctx context.Context, force bool) error {
	if force {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, d.sup.times.force)
		defer cancel()
	}
	scanned := false
	for wait := time.Millisecond; ; wait = min(2*wait, 100*time.Millisecond) {
		info, err := d.sup.cfg.Kernel.Info(d.index)
		if err != nil || info.Gone() {
			return nil
		}
		if len(info.Partitions) > 0 && info.PID == 0 && info.Size == 0 && !scanned {
			scanned = true // they go when somebody opens the device
			d.scan(ctx)
			continue
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			hasOpeners(info)
			return &BusyError{Info: *info, Forced: true}
		}
	}
}

// hasOpeners reports whether a process has the device open, and adds who to info.
func hasOpeners(info *kernel.Info) bool {
	if info.Openers == nil {
		kernel.System{}.AddOpeners(info)
	}
	return len(info.Openers) > 0
}
