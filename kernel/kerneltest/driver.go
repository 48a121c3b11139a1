package kerneltest

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"nbd.example/nbd/kernel"
)

// Driver is the way to a fake kernel's driver: a [kernel.Driver].
type Driver struct {
	k      *Kernel
	closed context.Context // ends with the driver
	close  context.CancelFunc
}

var _ kernel.Driver = (*Driver)(nil)

func newDriver(k *Kernel) *Driver {
	d := &Driver{k: k}
	d.closed, d.close = context.WithCancel(context.Background())
	return d
}

// call does what a system call does, and waits for it no longer than ctx lasts. What has
// begun goes on without the caller then; undo is called if it succeeds after all. Those
// of the sockets that f has not set to nil are closed at the end.
func (d *Driver) call(ctx context.Context, op Op, c callee, sockets []*socket, f func() error, undo func()) error {
	done := make(chan error)
	left := make(chan struct{}) // closed when the caller has gone
	run := func() {
		defer closeAll(sockets)
		err := d.enter(ctx, op, c.index)
		if err == nil {
			err = f()
		}
		select {
		case done <- err:
		case <-left:
			if err == nil && undo != nil {
				undo()
			}
		}
	}
	if !d.k.start(run) {
		closeAll(sockets)
		return errClosed
	}
	select {
	case err := <-done:
		if err != nil {
			return fmt.Errorf("%s%s: %w", op, c, err)
		}
		return nil
	case <-ctx.Done():
		close(left)
		return fmt.Errorf("%s%s: the kernel does not answer: %w", op, c, context.Cause(ctx))
	}
}

// callee is whom a call is for: a device, or no one in particular.
type callee struct {
	index kernel.Index
	none  bool
}

// String returns what to put behind the name of a call.
func (c callee) String() string {
	if c.none {
		return ""
	}
	return " " + c.index.Name()
}

// enter begins a call.
func (d *Driver) enter(ctx context.Context, op Op, i kernel.Index) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if d.closed.Err() != nil {
		return fmt.Errorf("the driver was closed")
	}
	d.k.mu.Lock()
	f := d.k.intercept
	d.k.mu.Unlock()
	if f == nil {
		return nil
	}
	return f(ctx, op, i)
}

// Connect is that of [kernel.Driver].
func (d *Driver) Connect(ctx context.Context, a *kernel.Attach) (kernel.Index, error) {
	copied := *a
	copied.Sockets = slices.Clone(a.Sockets)
	if err := copied.Check(); err != nil {
		return 0, fmt.Errorf("connect: %w", err)
	}
	sockets, err := takeAll(a.Sockets)
	if err != nil {
		return 0, fmt.Errorf("connect: %w", err)
	}
	var got *Device
	connect := func() (err error) {
		got, err = d.k.connect(&copied, sockets)
		return err
	}
	undo := func() { got.disconnect() }
	if err := d.call(ctx, OpConnect, callee{a.Index, a.Any}, sockets, connect, undo); err != nil {
		return 0, err
	}
	return got.index, nil
}

// Reconfigure is that of [kernel.Driver]. Like nbdnl it says [kernel.ErrNotTaken] only if
// the change has a Timeout.
func (d *Driver) Reconfigure(ctx context.Context, i kernel.Index, c *kernel.Change) error {
	copied := *c
	if err := copied.Check(); err != nil {
		return fmt.Errorf("reconfigure %s: %w", i.Name(), err)
	}
	sockets, err := takeAll(c.Sockets)
	if err != nil {
		return fmt.Errorf("reconfigure %s: %w", i.Name(), err)
	}
	return d.call(ctx, OpReconfigure, callee{index: i}, sockets, func() error {
		dev, err := d.k.find(i)
		if err != nil {
			return err
		}
		return dev.reconfigure(&copied, sockets)
	}, nil)
}

// Disconnect is that of [kernel.Driver].
func (d *Driver) Disconnect(ctx context.Context, i kernel.Index) error {
	return d.call(ctx, OpDisconnect, callee{index: i}, nil, func() error {
		dev, err := d.k.find(i)
		if err != nil {
			return err
		}
		return dev.disconnect()
	}, nil)
}

// Status is that of [kernel.Driver].
func (d *Driver) Status(ctx context.Context, i kernel.Index) (kernel.Status, error) {
	s := kernel.Status{Index: i}
	err := d.call(ctx, OpStatus, callee{index: i}, nil, func() error {
		dev, err := d.k.find(i)
		if err == nil {
			s.Connected = dev.inUse()
		}
		return err
	}, nil)
	return s, err
}

// StatusAll is that of [kernel.Driver].
func (d *Driver) StatusAll(ctx context.Context) ([]kernel.Status, error) {
	var list []kernel.Status
	err := d.call(ctx, OpStatus, callee{none: true}, nil, func() error {
		for _, dev := range d.k.all() {
			list = append(list, kernel.Status{Index: dev.index, Connected: dev.inUse()})
		}
		return nil
	}, nil)
	if err != nil {
		return nil, err
	}
	slices.SortFunc(list, func(a, b kernel.Status) int { return cmp.Compare(a.Index, b.Index) })
	return list, nil
}

// Info is that of [kernel.Driver].
func (d *Driver) Info(i kernel.Index) (*kernel.Info, error) {
	dev, err := d.k.find(i)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", i.Name(), err)
	}
	return dev.info(), nil
}

// Rescan is that of [kernel.Driver]. There are no partitions, but opening reads.
func (d *Driver) Rescan(ctx context.Context, i kernel.Index) error {
	dev, err := d.k.find(i)
	if err != nil {
		return fmt.Errorf("rescan %s: %w", i.Name(), err)
	}
	done := make(chan struct{})
	scan := func() {
		defer close(done)
		if release, err := dev.Open(); err == nil {
			dev.ReadAt(make([]byte, 4096), 0) // a failure is no failure of opening
			release()
		}
	}
	if !d.k.start(scan) {
		return errClosed
	}
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("rescan %s: %w", i.Name(), context.Cause(ctx))
	}
}

// Claim is that of [kernel.Driver].
func (d *Driver) Claim(ctx context.Context, i kernel.Index) error {
	return d.call(ctx, OpClaim, callee{index: i}, nil, func() error {
		dev, err := d.k.find(i)
		if err != nil {
			return err
		}
		release, err := dev.Claim()
		if err == nil {
			release()
		}
		return err
	}, nil)
}

// LimitRequests is that of [kernel.Driver].
func (d *Driver) LimitRequests(ctx context.Context, i kernel.Index, most int64) error {
	return d.call(ctx, OpLimitRequests, callee{index: i}, nil, func() error {
		dev, err := d.k.find(i)
		if err == nil {
			dev.limitRequests(most)
		}
		return err
	}, nil)
}

// Can is that of [kernel.Driver].
func (d *Driver) Can() kernel.Abilities {
	return kernel.Abilities{Reconfigure: true, Watch: true, AnyIndex: true, Adopt: true}
}

// Close is that of [kernel.Driver].
func (d *Driver) Close() error {
	d.close()
	return nil
}

// Watch is that of [kernel.Driver].
func (d *Driver) Watch(ctx context.Context, f func(kernel.Index)) error {
	if d.closed.Err() != nil {
		return fmt.Errorf("watch: the driver was closed")
	}
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(d.closed, cancel) // with the driver
	context.AfterFunc(ctx, func() { stop(); cancel() })
	if !d.k.board.Watch(ctx, f) {
		cancel()
		return errClosed
	}
	return nil
}
