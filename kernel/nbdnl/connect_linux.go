package nbdnl

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"nbd.example/nbd/kernel"
	"nbd.example/nbd/proto"
)

// Connect is that of [kernel.Driver]. A device that somebody else looks at, or that is
// just going away, is tried again for a second.
func (d *Driver) Connect(ctx context.Context, a *kernel.Attach) (kernel.Index, error) {
	i, err := d.connect(ctx, a)
	if err != nil {
		name := a.Index.Name()
		if a.Any {
			name = "a kernel device"
		}
		return 0, fmt.Errorf("attach %s: %w", name, err)
	}
	if a.Flags&proto.FlagReadOnly == 0 {
		d.clearReadOnly(ctx, i)
	}
	return i, nil
}

func (d *Driver) connect(ctx context.Context, a *kernel.Attach) (kernel.Index, error) {
	if err := a.Check(); err != nil {
		return 0, err
	}
	if err := kernel.CheckSockets(a.Sockets); err != nil {
		return 0, err
	}
	reply, err := d.callConnect(ctx, a)
	for wait := 5 * time.Millisecond; err != nil && wait < time.Second && d.passing(a, err); wait *= 2 {
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
		}
		timer.Stop()
		reply, err = d.callConnect(ctx, a)
	}
	switch {
	case errors.Is(err, kernel.ErrBusy):
		return 0, d.busy(a.Index, err)
	case errors.Is(err, unix.EINVAL):
		return 0, d.whyNotConnect(a, err)
	case err != nil:
		return 0, err
	}
	return decodeIndex(reply)
}

// callConnect sends the message.
func (d *Driver) callConnect(ctx context.Context, a *kernel.Attach) ([]byte, error) {
	return d.call(ctx, &message{
		command: cmdConnect, files: a.Sockets,
		encode: func(fds []uint32) ([]byte, error) { return encodeConnect(a, fds) },
		late:   d.undo,
	})
}

// undo detaches what was attached when nobody waited for it any more.
func (d *Driver) undo(reply []byte) {
	i, err := decodeIndex(reply)
	if err != nil {
		return
	}
	conn, err := d.dial() // the driver may be closed
	if err != nil {
		return
	}
	defer conn.Close()
	if b, err := encodeIndex(i); err == nil {
		// If it fails, the device stays, and there is nobody to tell.
		_, _ = d.execute(conn, &message{command: cmdDisconnect, ack: true}, b)
	}
}

// passing reports whether an error may be one that soon is no more: somebody, udev for
// one, has the device open and looks at it, or it is just being removed.
func (d *Driver) passing(a *kernel.Attach, err error) bool {
	info, problem := d.system.Info(a.Index)
	free := errors.Is(problem, kernel.ErrNoDevice) || problem == nil && info.PID == 0
	return !a.Any && free && (errors.Is(err, kernel.ErrBusy) || errors.Is(err, unix.EINVAL) && a.BlockSize <= int64(os.Getpagesize()))
}

// busy adds who has the device.
func (d *Driver) busy(i kernel.Index, err error) error {
	info, _ := d.system.Info(i)
	if info == nil {
		return err
	}
	if info.PID != 0 {
		err = fmt.Errorf("%w: process %d has attached it", err, info.PID)
	}
	d.system.AddOpeners(info)
	if users := info.Users(); users != "" {
		err = fmt.Errorf("%w: it is %s", err, users)
	}
	return err
}

// whyNotConnect guesses why the kernel has refused an attachment as invalid.
func (d *Driver) whyNotConnect(a *kernel.Attach, err error) error {
	switch {
	case a.BlockSize > int64(os.Getpagesize()):
		return fmt.Errorf("%w: this kernel may want blocks no larger than a page of %d bytes, not %d", err, os.Getpagesize(), a.BlockSize)
	case !a.Any && a.Index > 0xfff:
		return fmt.Errorf("%w: this kernel may not have that many devices", err)
	}
	return fmt.Errorf("%w: the device may be going away just now; the kernel's log may tell more", err)
}

// nodePatience is how long a device that has just been attached may take to be opened: the
// kernel reads its partition table then, and the server may be silent.
const nodePatience = 5 * time.Second

// clearReadOnly takes away the mark that an earlier attachment has left: the kernel
// keeps it beside that of the attachment. If it fails, writing does: nothing worse than not
// to try.
func (d *Driver) clearReadOnly(ctx context.Context, i kernel.Index) {
	if info, err := d.system.Info(i); err != nil || !info.ReadOnly {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, d.patience)
	defer cancel()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = d.system.SetReadOnly(i, false)
	}()
	select {
	case <-done:
	case <-ctx.Done():
	}
}
