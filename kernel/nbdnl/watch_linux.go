package nbdnl

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/mdlayher/genetlink"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"nbd.example/nbd/kernel"
)

// watchBuffer is the socket's buffer for messages that were not yet read, in bytes. A
// message takes less than 1 KiB of it.
const watchBuffer = 1 << 20

// watchPause is how long a watcher whose socket broke waits for the next one.
const watchPause = time.Second

// receiver is a socket that gets the kernel's messages about dead connections.
type receiver interface {
	Receive() ([]genetlink.Message, []netlink.Message, error)
	SetReadDeadline(t time.Time) error
	Close() error
}

// subscribe opens a socket that gets what the kernel tells a multicast group.
func subscribe(group uint32) (receiver, error) {
	conn, err := dial()
	if err != nil {
		return nil, err
	}
	// More than that is up to the administrator, less works, too.
	_ = conn.SetReadBuffer(watchBuffer)
	if err := conn.JoinGroup(group); err != nil {
		conn.Close()
		return nil, explain(err)
	}
	return conn, nil
}

// Watch is that of [kernel.Driver]. Messages that the kernel had to drop, because f
// took too long, or that were lost with a broken socket are made up for: f is called with
// every device that is attached.
func (d *Driver) Watch(ctx context.Context, f func(kernel.Index)) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return fmt.Errorf("watch kernel devices: %w", fs.ErrClosed)
	}
	if d.group == 0 {
		return fmt.Errorf("watch kernel devices: %w: it has no group %q", kernel.ErrUnsupported, groupName)
	}
	conn, err := d.subscribe(d.group)
	if err != nil {
		return fmt.Errorf("watch kernel devices: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(d.closing, cancel)
	d.wg.Go(func() {
		defer cancel()
		defer stop()
		d.watch(ctx, conn, f)
	})
	return nil
}

// watch reports until ctx ends, with another socket where one breaks: who watches would
// go on without a word, and never learn of a death.
func (d *Driver) watch(ctx context.Context, conn receiver, f func(kernel.Index)) {
	for {
		d.report(ctx, conn, f)
		conn.Close()
		for conn = nil; conn == nil; {
			select {
			case <-ctx.Done():
				return
			case <-time.After(d.pause):
			}
			if next, err := d.subscribe(d.group); err == nil {
				conn = next
			}
		}
		d.reportAll(ctx, f)
	}
}

// report reports what comes from a socket, until it breaks or ctx ends.
func (d *Driver) report(ctx context.Context, conn receiver, f func(kernel.Index)) {
	defer context.AfterFunc(ctx, func() { conn.SetReadDeadline(time.Now()) })()
	for {
		messages, _, err := conn.Receive()
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, unix.ENOBUFS):
			d.reportAll(ctx, f)
		case err != nil:
			return
		}
		for _, m := range messages {
			if m.Header.Command != uint8(cmdLinkDead) {
				continue
			}
			if i, err := decodeIndex(m.Data); err == nil && ctx.Err() == nil {
				f(i)
			}
		}
	}
}

// reportAll reports all devices that are attached.
func (d *Driver) reportAll(ctx context.Context, f func(kernel.Index)) {
	devices, err := d.system.Devices()
	if err != nil {
		return
	}
	for _, i := range devices {
		if info, err := d.system.Info(i); err == nil && info.PID != 0 && ctx.Err() == nil {
			f(i)
		}
	}
}
