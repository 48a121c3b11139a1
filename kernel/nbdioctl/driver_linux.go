package nbdioctl

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"nbd.example/nbd/kernel"
	"nbd.example/nbd/kernel/internal/announce"
)

// Driver is the way to the kernel's driver by ioctl. Make one with [Open]. All methods
// may be called concurrently.
type Driver struct {
	system kernel.System
	board  announce.Board

	mu      sync.Mutex
	devices map[kernel.Index]*device
	closed  bool
}

var _ kernel.Driver = (*Driver)(nil)

// Open looks for the driver in the kernel. The error wraps [kernel.ErrNoModule] if it is
// not there; see [kernel.LoadModule].
func Open() (*Driver, error) {
	d := &Driver{devices: map[kernel.Index]*device{}}
	if list, err := d.system.Devices(); err != nil || len(list) == 0 && !d.system.Loaded() {
		return nil, fmt.Errorf("open the NBD driver: %w", errors.Join(kernel.ErrNoModule, err))
	}
	return d, nil
}

// Can is that of [kernel.Driver].
func (d *Driver) Can() kernel.Abilities {
	return kernel.Abilities{Watch: true, AnyIndex: true}
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

// Watch is that of [kernel.Driver]. A device that this driver has attached dies as a
// whole, when its last connection does, and is reported once.
func (d *Driver) Watch(ctx context.Context, f func(kernel.Index)) error {
	if !d.board.Watch(ctx, f) {
		return fmt.Errorf("watch kernel devices: %w", fs.ErrClosed)
	}
	return nil
}

// Connect is that of [kernel.Driver]. It returns when the device is attached, or cannot
// be.
func (d *Driver) Connect(ctx context.Context, a *kernel.Attach) (kernel.Index, error) {
	if err := errors.Join(a.Check(), kernel.CheckSockets(a.Sockets)); err != nil {
		return 0, fmt.Errorf("attach: %w", err)
	}
	if a.Client != 0 {
		return 0, fmt.Errorf("attach: client flags need netlink: %w", kernel.ErrUnsupported)
	}
	if !a.Any {
		return a.Index, d.connect(ctx, a.Index, a)
	}
	list, err := d.system.Devices()
	if err != nil {
		return 0, fmt.Errorf("attach: %w", err)
	}
	for _, i := range list {
		info, err := d.system.Info(i)
		if err != nil || !info.Gone() {
			continue
		}
		// Another process may take it meanwhile.
		if err := d.connect(ctx, i, a); !errors.Is(err, kernel.ErrBusy) {
			return i, err
		}
	}
	return 0, fmt.Errorf("attach: all %d kernel devices are in use: %w; load the module with a larger nbds_max", len(list), kernel.ErrBusy)
}

// connect attaches a device.
func (d *Driver) connect(ctx context.Context, i kernel.Index, a *kernel.Attach) error {
	if err := d.attach(ctx, i, a); err != nil {
		return fmt.Errorf("attach %s: %w", i.Name(), err)
	}
	return nil
}

func (d *Driver) attach(ctx context.Context, i kernel.Index, a *kernel.Attach) error {
	info, err := d.system.Info(i)
	if err != nil {
		return err
	}
	if info.PID != 0 {
		return fmt.Errorf("%w: process %d has attached it", kernel.ErrBusy, info.PID)
	}
	steps, err := plan(a, word)
	if err != nil {
		return err
	}
	dev, err := newDevice(d.system.Node(i), i, a, steps)
	if err != nil {
		return err
	}
	if err := d.add(dev); err != nil {
		dev.discard()
		return err
	}
	go d.run(dev)
	if err := d.awaitUp(ctx, dev); err != nil {
		dev.detach(ctx)
		return err
	}
	return nil
}

// add enters a device, unless there is one with its index.
func (d *Driver) add(dev *device) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return fs.ErrClosed
	}
	if d.devices[dev.index] != nil {
		return fmt.Errorf("%w: this process is about to attach it", kernel.ErrBusy)
	}
	d.devices[dev.index] = dev
	return nil
}

// run attaches the device, and returns when it is detached.
func (d *Driver) run(dev *device) {
	err := dev.serve()
	d.mu.Lock()
	delete(d.devices, dev.index)
	d.mu.Unlock()
	dev.err = err
	close(dev.done)
	if dev.served.Load() && !dev.ending.Load() {
		d.board.Post(dev.index)
	}
}

// awaitUp waits until the device is attached: the kernel shows its process, and a size.
func (d *Driver) awaitUp(ctx context.Context, dev *device) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	go func() {
		select {
		case <-dev.done:
			cancel(dev.why())
		case <-ctx.Done():
		}
	}()
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		if info, err := d.system.Info(dev.index); err == nil && info.PID != 0 && info.Size != 0 {
			return nil
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return context.Cause(ctx)
		}
	}
}

// find returns the device that this process has attached, or nil.
func (d *Driver) find(i kernel.Index) *device {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.devices[i]
}

// Disconnect is that of [kernel.Driver]. Devices of other processes can be detached,
// too.
func (d *Driver) Disconnect(ctx context.Context, i kernel.Index) error {
	if err := d.detach(ctx, i); err != nil {
		return fmt.Errorf("detach %s: %w", i.Name(), err)
	}
	return nil
}

func (d *Driver) detach(ctx context.Context, i kernel.Index) error {
	if dev := d.find(i); dev != nil {
		dev.detach(ctx)
		return nil
	}
	info, err := d.system.Info(i)
	if err != nil {
		return err
	}
	if info.PID == 0 {
		return kernel.ErrNotConnected
	}
	done := make(chan error, 1)
	go func() {
		done <- withNode(d.system.Node(i), func(fd int) error {
			// The second one fails what waits, also if the peer reads no more.
			return errors.Join(ioctl(fd, disconnect, 0), ioctl(fd, clearSock, 0))
		})
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("the kernel does not answer: %w", context.Cause(ctx))
	}
}

// Reconfigure is that of [kernel.Driver]. Size, block size and timeout can change, the
// rest is [kernel.ErrUnsupported].
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
	if len(c.Sockets) > 0 || c.DeadTimeout != nil || c.Client != nil {
		return fmt.Errorf("%w: a device that was attached by ioctl keeps its sockets", kernel.ErrUnsupported)
	}
	info, err := d.system.Info(i)
	if err != nil {
		return err
	}
	if info.PID == 0 {
		return kernel.ErrNotConnected
	}
	var steps []step
	if c.Size != 0 || c.BlockSize != 0 {
		size, block := c.Size, c.BlockSize
		if size == 0 {
			size = info.Size
		}
		if block == 0 {
			block = info.BlockSize
		}
		if steps, err = planSize(size, block, word); err != nil {
			return err
		}
	}
	if c.Timeout != nil {
		steps = append(steps, step{setTimeout, kernel.Seconds(*c.Timeout)})
	}
	done := make(chan error, 1)
	go func() {
		done <- withNode(d.system.Node(i), func(fd int) error { return perform(fd, steps) })
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("the kernel does not answer: %w", context.Cause(ctx))
	}
}

// Status is that of [kernel.Driver].
func (d *Driver) Status(ctx context.Context, i kernel.Index) (kernel.Status, error) {
	if err := ctx.Err(); err != nil {
		return kernel.Status{}, err
	}
	info, err := d.system.Info(i)
	if err != nil {
		return kernel.Status{}, fmt.Errorf("status: %w", err)
	}
	return kernel.Status{Index: i, Connected: info.PID != 0}, nil
}

// StatusAll is that of [kernel.Driver].
func (d *Driver) StatusAll(ctx context.Context) ([]kernel.Status, error) {
	list, err := d.system.Devices()
	if err != nil {
		return nil, fmt.Errorf("status: %w", err)
	}
	var all []kernel.Status
	for _, i := range list {
		s, err := d.Status(ctx, i)
		switch {
		case errors.Is(err, kernel.ErrNoDevice): // it has just gone
		case err != nil:
			return nil, err
		default:
			all = append(all, s)
		}
	}
	return all, nil
}

// goodbye is how long Close waits for peers to take a farewell.
const goodbye = 5 * time.Second

// Close detaches all devices of this driver, and waits until the kernel has let go of
// them. A peer that reads no more cannot delay it for long.
func (d *Driver) Close() error {
	d.mu.Lock()
	d.closed = true
	var list []*device
	for _, dev := range d.devices {
		list = append(list, dev)
	}
	d.mu.Unlock()
	ctx, cancel := context.WithTimeout(context.Background(), goodbye)
	defer cancel()
	for _, dev := range list {
		dev.end() // all of them at once
	}
	for _, dev := range list {
		dev.detach(ctx)
	}
	d.board.Close()
	return nil
}

// withNode calls f with the descriptor of a node.
func withNode(node string, f func(fd int) error) error {
	// Not for writing, which would be refused for a read-only device, and would make
	// udev look at it when it is closed.
	fd, err := unix.Open(node, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return explain(&os.PathError{Op: "open", Path: node, Err: err})
	}
	defer unix.Close(fd)
	return f(fd)
}
