package kernel

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// How often a device is looked at while it is waited for. Most are there at the first
// look, and no event tells of all that is waited for: sysfs shows the process before
// the size, and users go silently.
const (
	firstLook = time.Millisecond
	mostLook  = 100 * time.Millisecond
)

// AwaitReady waits until a device is attached, has its size and its node, and returns
// what the system tells of it then. It does not wait for partitions: see
// [Driver.Rescan].
func AwaitReady(ctx context.Context, d Driver, i Index) (*Info, error) {
	var last *Info
	err := poll(ctx, func() (bool, error) {
		info, err := d.Info(i)
		if errors.Is(err, ErrNoDevice) {
			return false, nil // it may be on its way
		}
		last = info
		return err == nil && info.Ready(), err
	})
	if err == nil {
		return last, nil
	}
	return last, fmt.Errorf("wait for %s to be ready: %w%s", i.Name(), err, last.unready())
}

// Ready reports whether a device is attached and can be used.
func (info *Info) Ready() bool { return info.PID != 0 && info.Size != 0 && info.Node }

// unready says what is missing.
func (info *Info) unready() string {
	switch {
	case info == nil:
		return ""
	case info.PID == 0:
		return "; it is not attached"
	case info.Size == 0:
		return "; it has no size yet"
	case !info.Node:
		return "; it has no node " + info.Index.Path() + ": is devtmpfs mounted on /dev?"
	}
	return ""
}

// AwaitGone waits until nothing is left of an attachment: neither the driver's hold, nor
// the size, nor partitions, which it has the kernel look for again. That can take for
// ever where somebody has the device open; the Info that it returns, with an error when
// ctx ends, tells who. It is nil if the device could not be looked at. A device that does
// not exist is gone.
func AwaitGone(ctx context.Context, d Driver, i Index) (*Info, error) {
	var last *Info
	var failed error
	err := poll(ctx, func() (bool, error) {
		last, failed = d.Info(i)
		switch {
		case errors.Is(failed, ErrNoDevice), errors.Is(failed, ErrNoModule):
			last = &Info{Index: i}
			return true, nil
		case failed != nil: // nothing is known; the next look may tell more
			last = nil
			return false, nil
		case last.PID == 0 && last.Size == 0 && len(last.Partitions) > 0:
			// The kernel drops them when the device is opened the next time. It may be
			// somebody else's already, or its node gone: then the next look tells.
			d.Rescan(ctx, i)
			return false, nil
		}
		return last.Gone(), nil
	})
	switch {
	case err == nil:
		return last, nil
	case failed != nil:
		return nil, fmt.Errorf("wait for %s to be gone: %w: %w", i.Name(), err, failed)
	}
	users := last.Users()
	if users != "" {
		users = ": it is " + users
	}
	return last, fmt.Errorf("wait for %s to be gone: %w%s", i.Name(), err, users)
}

// Left reports whether a device was detached while somebody had it open: the system shows it
// until he closes it, but nothing reaches its server any more. Only who may attach devices
// learns that, of those that were attached by netlink and with an identifier.
func Left(ctx context.Context, d Driver, i Index, identifier string) bool {
	if identifier == "" || !d.Can().Reconfigure {
		return false
	}
	nothing := &Change{Identifier: identifier}
	return errors.Is(d.Reconfigure(ctx, i, nothing), ErrNotConnected)
}

// poll calls f until it reports true or an error, or ctx ends: often at first, more
// rarely later.
func poll(ctx context.Context, f func() (bool, error)) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	<-timer.C
	for wait := firstLook; ; wait = min(2*wait, mostLook) {
		if ok, err := f(); ok || err != nil {
			return err
		}
		timer.Reset(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
