package supervise

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"syscall"
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
	if err := d.detaching.Take(ctx); err != nil {
		return fmt.Errorf("detach %s: somebody else detaches it, or all devices are being passed on: %w", d.st.Device, err)
	}
	defer d.detaching.Give()
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
	switch info, err := d.sup.cfg.Kernel.Info(d.index); {
	case err != nil && !absent(err):
		d.start(true)
		return fmt.Errorf("detach %s: whether it is still the same device cannot be found out: %w", d.st.Device, err)
	case err == nil && d.replaced(info):
		d.end(ErrTakenAway, Gone, true)
		return fmt.Errorf("detach %s: %w, and has been attached to something else", d.st.Device, ErrTakenAway)
	}
	d.update(func(st *State) { st.Phase, st.Reason = Detaching, "" })
	if err := d.disconnect(ctx, force); err != nil {
		d.update(func(st *State) { st.Phase, st.Reason = Attached, err.Error() })
		d.start(true)
		return fmt.Errorf("detach %s: %w", d.st.Device, err)
	}
	err := d.awaitGone(ctx, force)
	if info, failed := d.sup.cfg.Kernel.Info(d.index); failed == nil && !d.replaced(info) {
		d.unlimit(ctx)
	}
	d.end(ErrDetached, Gone, true)
	d.sup.worker.Flush(ctx)
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
		case !d.hasOpeners(info):
			// What is mounted in another mount namespace shows nowhere else.
			err := d.claim(ctx)
			if !errors.Is(err, kernel.ErrBusy) {
				return err
			}
			info.Claimed = true
		}
		if time.Now().After(until) {
			return &BusyError{Info: *info}
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return &BusyError{Info: *info}
		}
	}
}

// claim finds out whether somebody holds the device who does not show. Where that cannot be
// found out, as in a root without the device's node, it counts as held: the keeper of a root
// file system lives in such a place, and does not see the mount.
func (d *Device) claim(ctx context.Context) error {
	limit, cancel := context.WithTimeout(ctx, d.sup.times.claim)
	defer cancel()
	err := d.sup.cfg.Kernel.Claim(limit, d.index)
	switch {
	case err == nil, errors.Is(err, kernel.ErrBusy):
		return err
	case errors.Is(err, kernel.ErrNoDevice), errors.Is(err, syscall.ENXIO): // it has just gone
		return nil
	case limit.Err() != nil:
		return fmt.Errorf("detach: whether %s is in use does not show before it has a connection: %w; detach it by force if that cannot be", d.st.Device, err)
	}
	return fmt.Errorf("detach: whether %s is in use cannot be found out: %w; detach it by force if it is not", d.st.Device, err)
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

// replaced reports whether something else is attached by now.
func (d *Device) replaced(info *kernel.Info) bool {
	st := d.Status()
	return info.PID != 0 && st.Replaced(info)
}

// killAll shuts down all sockets that we have.
func (d *Device) killAll() {
	d.mu.Lock()
	slots := slices.Clone(d.slots) // only the keeper changes them, which has stopped
	d.mu.Unlock()
	endAll(slots, 0)
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
		if absent(err) || err == nil && (info.Gone() || d.replaced(info)) {
			return nil
		}
		if err == nil && len(info.Partitions) > 0 && info.PID == 0 && info.Size == 0 && !scanned {
			scanned = true // they go when somebody opens the device
			d.sup.scan(ctx, d.index, d.st.Spec.Client)
			continue
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			if err != nil {
				return err
			}
			d.hasOpeners(info)
			return &BusyError{Info: *info, Forced: true}
		}
	}
}

// hasOpeners reports whether a process has the device open, and adds who to info. By the
// old calls, this one has it open as long as it is attached.
func (d *Device) hasOpeners(info *kernel.Info) bool {
	if info.Openers == nil {
		kernel.System{}.AddOpeners(info)
	}
	if !d.sup.cfg.Kernel.Can().Adopt {
		info.Openers = slices.DeleteFunc(info.Openers, func(o kernel.Opener) bool { return o.PID == d.sup.self.PID })
	}
	return len(info.Openers) > 0
}
