package nbdnl

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/mdlayher/genetlink"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"nbd.example/nbd/kernel"
)

// Driver is the way to the kernel's driver by netlink. Make one with [Open]. All
// methods may be called concurrently.
type Driver struct {
	family uint16
	group  uint32
	system kernel.System
	dial   func() (*genetlink.Conn, error)
	// subscribe and pause are those of a watcher.
	subscribe func(group uint32) (receiver, error)
	pause     time.Duration
	patience  time.Duration   // with a node that does not open
	closing   context.Context // ends with the driver
	close     context.CancelFunc

	mu     sync.Mutex
	idle   []*genetlink.Conn // stay open until the end: a kernel to come may end devices with the socket that attached them
	closed bool
	wg     sync.WaitGroup // watchers
}

var _ kernel.Driver = (*Driver)(nil)

// Open looks for the driver in the kernel. The error wraps [kernel.ErrNoModule] if it is
// not there; see [kernel.LoadModule]. No rights are needed to open it, nor for Status,
// Watch and Info.
func Open() (*Driver, error) { return open(dial, kernel.System{}) }

func open(dial func() (*genetlink.Conn, error), system kernel.System) (*Driver, error) {
	conn, err := dial()
	if err != nil {
		return nil, fmt.Errorf("open the NBD driver: %w", err)
	}
	f, err := conn.GetFamily(familyName)
	if err != nil {
		conn.Close()
		if errors.Is(err, fs.ErrNotExist) {
			err = kernel.ErrNoModule
		}
		return nil, fmt.Errorf("open the NBD driver: %w", err)
	}
	d := &Driver{family: f.ID, system: system, dial: dial, subscribe: subscribe, pause: watchPause, patience: nodePatience, idle: []*genetlink.Conn{conn}}
	for _, g := range f.Groups {
		if g.Name == groupName {
			d.group = g.ID
		}
	}
	d.closing, d.close = context.WithCancel(context.Background())
	return d, nil
}

// dial opens a socket to the kernel.
func dial() (*genetlink.Conn, error) {
	conn, err := genetlink.Dial(nil)
	if err != nil {
		return nil, err
	}
	// Old kernels have no texts, and then nothing is lost.
	_ = conn.SetOption(netlink.ExtendedAcknowledge, true)
	return conn, nil
}

// Can is that of [kernel.Driver]: all of it.
func (d *Driver) Can() kernel.Abilities {
	return kernel.Abilities{Reconfigure: true, Watch: true, AnyIndex: true, Adopt: true}
}

// Info is that of [kernel.Driver].
func (d *Driver) Info(i kernel.Index) (*kernel.Info, error) { return d.system.Info(i) }

// Rescan is that of [kernel.Driver].
func (d *Driver) Rescan(ctx context.Context, i kernel.Index) error { return d.system.Rescan(ctx, i) }

// Claim is that of [kernel.Driver].
func (d *Driver) Claim(ctx context.Context, i kernel.Index) error { return d.system.Claim(ctx, i) }

// LimitRequests is that of [kernel.Driver].
func (d *Driver) LimitRequests(ctx context.Context, i kernel.Index, most int64) error {
	return d.system.LimitRequests(ctx, i, most)
}

// Close ends Watch and closes the sockets to the kernel. Calls that the kernel does not
// answer keep theirs until it does.
func (d *Driver) Close() error {
	d.close()
	d.mu.Lock()
	idle := d.idle
	d.idle, d.closed = nil, true
	d.mu.Unlock()
	var errs []error
	for _, c := range idle {
		errs = append(errs, c.Close())
	}
	d.wg.Wait()
	return errors.Join(errs...)
}

// take returns a socket that nobody uses.
func (d *Driver) take() (*genetlink.Conn, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil, fs.ErrClosed
	}
	if n := len(d.idle); n > 0 {
		c := d.idle[n-1]
		d.idle = d.idle[:n-1]
		return c, nil
	}
	return d.dial()
}

// give gives it back. One whose stream of messages may be out of step is not used again.
func (d *Driver) give(c *genetlink.Conn, good bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed || !good {
		c.Close()
		return
	}
	d.idle = append(d.idle, c)
}

// message is one call of the kernel.
type message struct {
	command command
	// ack asks for an acknowledgement in place of a reply, for commands that have none;
	// the others would send both.
	ack bool
	// encode makes the attributes, with descriptors of the files.
	encode func(fds []uint32) ([]byte, error)
	files  []*os.File
	// late gets the reply when nobody waits for it any more.
	late func([]byte)
}

// call sends a message and returns the attributes of the reply. When ctx ends first, it
// returns; the kernel goes on.
func (d *Driver) call(ctx context.Context, m *message) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	fds, err := duplicate(m.files)
	if err != nil {
		return nil, err
	}
	b, err := m.encode(fds)
	if err != nil {
		closeAll(fds)
		return nil, err
	}
	conn, err := d.take()
	if err != nil {
		closeAll(fds)
		return nil, err
	}
	type result struct {
		b   []byte
		err error
	}
	done, left := make(chan result), make(chan struct{})
	go func() {
		b, err := d.execute(conn, m, b)
		closeAll(fds)
		var errno syscall.Errno
		d.give(conn, err == nil || errors.As(err, &errno))
		select {
		case done <- result{b, err}:
		case <-left:
			if err == nil && m.late != nil {
				m.late(b)
			}
		}
	}()
	select {
	case r := <-done:
		return r.b, r.err
	case <-ctx.Done():
		close(left)
		return nil, fmt.Errorf("the kernel does not answer: %w", context.Cause(ctx))
	}
}

// duplicate returns new descriptors for files: the kernel may look at them when the
// caller, whose ctx has ended, has closed his.
func duplicate(files []*os.File) (fds []uint32, err error) {
	err = each(files, func(fd int) error {
		n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err == nil {
			fds = append(fds, uint32(n))
		}
		return err
	})
	if err != nil {
		closeAll(fds)
		return nil, err
	}
	return fds, nil
}

// closeAll closes descriptors.
func closeAll(fds []uint32) {
	for _, fd := range fds {
		unix.Close(int(fd))
	}
}

// each calls f with the descriptor of each file.
func each(files []*os.File, f func(fd int) error) error {
	for _, file := range files {
		raw, err := file.SyscallConn()
		if err != nil {
			return err
		}
		problem := raw.Control(func(fd uintptr) { err = f(int(fd)) })
		if err := errors.Join(problem, err); err != nil {
			return fmt.Errorf("socket %s: %w", file.Name(), err)
		}
	}
	return nil
}

// execute sends a message and waits for the reply, however long that takes.
func (d *Driver) execute(conn *genetlink.Conn, m *message, b []byte) ([]byte, error) {
	g := genetlink.Message{Header: genetlink.Header{Command: uint8(m.command), Version: version}, Data: b}
	flags := netlink.Request
	if m.ack {
		flags |= netlink.Acknowledge
	}
	replies, err := conn.Execute(g, d.family, flags)
	if err != nil {
		return nil, explain(err)
	}
	if m.ack {
		return nil, nil
	}
	for _, r := range replies {
		if r.Header.Command == uint8(m.command) {
			return r.Data, nil
		}
	}
	return nil, fmt.Errorf("the kernel sent %d messages, and none is a reply to %q", len(replies), m.command.String())
}

// explain turns the kernel's error numbers into errors of package kernel, where they
// have only one meaning, and keeps the text that came along.
func explain(err error) error {
	var op *netlink.OpError
	errors.As(err, &op)
	meaning := err
	switch {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		meaning = kernel.ErrPermission
	case errors.Is(err, unix.EBUSY):
		meaning = kernel.ErrBusy
	case errors.Is(err, unix.EOPNOTSUPP):
		meaning = kernel.ErrUnsupported
	case op != nil:
		meaning = op.Err
	}
	if op != nil && op.Message != "" {
		return fmt.Errorf("%w: the kernel says %.200q", meaning, op.Message)
	}
	return meaning
}

// Disconnect is that of [kernel.Driver].
func (d *Driver) Disconnect(ctx context.Context, i kernel.Index) error {
	if err := d.disconnect(ctx, i); err != nil {
		return fmt.Errorf("detach %s: %w", i.Name(), err)
	}
	return nil
}

func (d *Driver) disconnect(ctx context.Context, i kernel.Index) error {
	// The kernel says nothing of a device that is not attached.
	info, err := d.system.Info(i)
	if err != nil {
		return err
	}
	if info.PID == 0 {
		return kernel.ErrNotConnected
	}
	_, err = d.call(ctx, &message{
		command: cmdDisconnect, ack: true,
		encode: func([]uint32) ([]byte, error) { return encodeIndex(i) },
	})
	if errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("%w: it is going away: %w", kernel.ErrNotConnected, err)
	}
	return err
}

// Status is that of [kernel.Driver].
func (d *Driver) Status(ctx context.Context, i kernel.Index) (kernel.Status, error) {
	list, err := d.status(ctx, func([]uint32) ([]byte, error) { return encodeIndex(i) })
	if err != nil {
		return kernel.Status{}, fmt.Errorf("status of %s: %w", i.Name(), err)
	}
	for _, s := range list {
		if s.Index == i {
			return s, nil
		}
	}
	return kernel.Status{}, fmt.Errorf("status of %s: %w", i.Name(), kernel.ErrNoDevice)
}

// StatusAll is that of [kernel.Driver].
func (d *Driver) StatusAll(ctx context.Context) ([]kernel.Status, error) {
	list, err := d.status(ctx, func([]uint32) ([]byte, error) { return nil, nil })
	if err != nil {
		return nil, fmt.Errorf("status of all kernel devices: %w", err)
	}
	return list, nil
}

func (d *Driver) status(ctx context.Context, encode func([]uint32) ([]byte, error)) ([]kernel.Status, error) {
	reply, err := d.call(ctx, &message{command: cmdStatus, encode: encode})
	if err != nil {
		return nil, err
	}
	return decodeStatus(reply)
}
