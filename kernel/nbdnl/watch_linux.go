package nbdnl

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/mdlayher/genetlink"
	"golang.org/x/sys/unix"

	"nbd.example/nbd/kernel"
)

// watchBuffer is the socket's buffer for messages that were not yet read, in bytes. A
// message takes less than 1 KiB of it.
const watchBuffer = 1 << 20

// Watch is that of [kernel.Driver]. Messages that the kernel had to drop, because f
// took too long, are made up for: f is called with every device that is attached.
func (d *Driver) Watch(ctx context.Context, f func(kernel.Index)) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return fmt.Errorf("watch kernel devices: %w", fs.ErrClosed)
	}
	if d.group == 0 {
		return fmt.Errorf("watch kernel devices: %w: it has no group %q", kernel.ErrUnsupported, groupName)
	}
	conn, err := dial()
	if err != nil {
		return fmt.Errorf("watch kernel devices: %w", err)
	}
	// More than that is up to the administrator, less works, too.
	_ = conn.SetReadBuffer(watchBuffer)
	if err := conn.JoinGroup(d.group); err != nil {
		conn.Close()
		return fmt.Errorf("watch kernel devices: %w", explain(err))
	}
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(d.closing, cancel)
	unblock := context.AfterFunc(ctx, func() { conn.SetReadDeadline(time.Now()) })
	d.wg.Go(func() {
		defer conn.Close()
		defer unblock()
		defer stop()
		defer cancel()
		d.watch(ctx, conn, f)
	})
	return nil
}

// watch reports until ctx ends.
func (d *Driver) watch(ctx context.Context, conn *genetlink.Conn, f func(kernel.Index)) {
	for {
		messages, _, err := conn.Receive()
		switch {
		case ctx.Err() != nil:
			return
		case errors.Is(err, unix.ENOBUFS):
			d.reportAll(ctx, f)
		case err != nil:
			return // the socket is broken, which does not happen
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
