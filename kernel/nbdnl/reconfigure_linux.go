package nbdnl

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"nbd.example/nbd/kernel"
)

// Reconfigure is that of [kernel.Driver].
//
// The kernel tells nobody whether it has taken a socket. But it sets the time limit for
// sending on those that it takes, SO_SNDTIMEO, to the device's timeout, if that is not
// 0, and leaves the others alone. So that is looked at. For a device without a timeout,
// one of 30 s is set along with the sockets, which is what 0 means to the request timer
// anyway, and 0 again afterwards.
func (d *Driver) Reconfigure(ctx context.Context, i kernel.Index, c *kernel.Change) error {
	if err := d.reconfigure(ctx, i, c); err != nil {
		return fmt.Errorf("reconfigure %s: %w", i.Name(), err)
	}
	return nil
}

func (d *Driver) reconfigure(ctx context.Context, i kernel.Index, c *kernel.Change) error {
	if err := c.Check(); err != nil {
		return err
	}
	if err := kernel.CheckSockets(c.Sockets); err != nil {
		return err
	}
	if len(c.Sockets) == 0 {
		return d.send(ctx, i, c)
	}
	change := *c
	none := c.Timeout != nil && kernel.Seconds(*c.Timeout) == 0
	if none {
		limit := requestTimer
		change.Timeout = &limit
	}
	if err := setLimits(c.Sockets, unmarked); err != nil {
		return err
	}
	err := d.send(ctx, i, &change)
	if none {
		back := kernel.Change{Timeout: c.Timeout, Identifier: c.Identifier}
		err = errors.Join(err, d.send(ctx, i, &back))
	}
	if err != nil {
		return err
	}
	taken, err := countMarked(c.Sockets)
	if err != nil {
		return err
	}
	// The limit of those that were taken is the kernel's, but for the one that was
	// set for a moment.
	rest := c.Sockets[taken:]
	if none {
		rest = c.Sockets
	}
	err = setLimits(rest, 0)
	if taken < len(c.Sockets) && c.Timeout != nil {
		err = errors.Join(err, fmt.Errorf("%w (%d of %d were taken)", kernel.ErrNotTaken, taken, len(c.Sockets)))
	}
	return err
}

// send sends one message.
func (d *Driver) send(ctx context.Context, i kernel.Index, c *kernel.Change) error {
	_, err := d.call(ctx, &message{
		command: cmdReconfigure, ack: true, files: c.Sockets,
		encode: func(fds []uint32) ([]byte, error) { return encodeReconfigure(i, c, fds) },
	})
	if errors.Is(err, unix.EINVAL) {
		return d.whyNotReconfigure(i, c, err)
	}
	return err
}

// whyNotReconfigure finds out why the kernel has refused a change as invalid.
func (d *Driver) whyNotReconfigure(i kernel.Index, c *kernel.Change, err error) error {
	info, problem := d.system.Info(i)
	switch {
	case problem != nil:
		return problem
	case info.PID == 0:
		return kernel.ErrNotConnected
	case info.Identifier != "" && info.Identifier != c.Identifier:
		return fmt.Errorf("%w: %q, not %q", kernel.ErrIdentifier, info.Identifier, c.Identifier)
	case c.BlockSize > int64(os.Getpagesize()):
		return fmt.Errorf("%w: this kernel may want blocks no larger than a page", err)
	}
	return fmt.Errorf("%w: it was detached, or was not attached by netlink: %w", kernel.ErrNotConnected, err)
}

// Time limits.
const (
	// requestTimer is what the driver uses for requests of a device without a timeout.
	requestTimer = 30 * time.Second
	// unmarked is the limit for sending of a socket that the kernel has not taken: it
	// sets whole seconds only.
	unmarked = 1<<20*time.Second + 500*time.Millisecond
)

// setLimits sets the time limit for sending of sockets.
func setLimits(files []*os.File, limit time.Duration) error {
	tv := unix.NsecToTimeval(int64(limit))
	return each(files, func(fd int) error {
		return os.NewSyscallError("set SO_SNDTIMEO", unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &tv))
	})
}

// countMarked counts the sockets at the begin of the list that the kernel has marked: it
// takes them in their order, until it has no place for one.
func countMarked(files []*os.File) (n int, err error) {
	missed := false
	err = each(files, func(fd int) error {
		tv, err := unix.GetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO)
		if err != nil {
			return os.NewSyscallError("get SO_SNDTIMEO", err)
		}
		if missed = missed || tv.Usec != 0; !missed {
			n++
		}
		return nil
	})
	return n, err
}
