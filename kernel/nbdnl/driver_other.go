//go:build !linux

package nbdnl

import (
	"context"

	"nbd.example/nbd/kernel"
)

// Driver is the way to the kernel's driver by netlink, which only Linux has.
type Driver struct{}

var _ kernel.Driver = (*Driver)(nil)

// Open returns [kernel.ErrUnsupported].
func Open() (*Driver, error) { return nil, kernel.ErrUnsupported }

// Connect is not there.
func (*Driver) Connect(context.Context, *kernel.Attach) (kernel.Index, error) {
	return 0, kernel.ErrUnsupported
}

// Reconfigure is not there.
func (*Driver) Reconfigure(context.Context, kernel.Index, *kernel.Change) error {
	return kernel.ErrUnsupported
}

// Disconnect is not there.
func (*Driver) Disconnect(context.Context, kernel.Index) error { return kernel.ErrUnsupported }

// Status is not there.
func (*Driver) Status(context.Context, kernel.Index) (kernel.Status, error) {
	return kernel.Status{}, kernel.ErrUnsupported
}

// StatusAll is not there.
func (*Driver) StatusAll(context.Context) ([]kernel.Status, error) {
	return nil, kernel.ErrUnsupported
}

// Watch is not there.
func (*Driver) Watch(context.Context, func(kernel.Index)) error { return kernel.ErrUnsupported }

// Info is not there.
func (*Driver) Info(kernel.Index) (*kernel.Info, error) { return nil, kernel.ErrUnsupported }

// Rescan is not there.
func (*Driver) Rescan(context.Context, kernel.Index) error { return kernel.ErrUnsupported }

// Claim is not there.
func (*Driver) Claim(context.Context, kernel.Index) error { return kernel.ErrUnsupported }

// LimitRequests is not there.
func (*Driver) LimitRequests(context.Context, kernel.Index, int64) error {
	return kernel.ErrUnsupported
}

// Can returns nothing.
func (*Driver) Can() kernel.Abilities { return kernel.Abilities{} }

// Close does nothing.
func (*Driver) Close() error { return nil }
