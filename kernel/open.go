package kernel

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
)

// Claim opens a device as file systems do, for itself alone, and closes it again. The
// error is [ErrBusy] if somebody else holds it so, or a partition of it: a mount, swap, a
// device on top; in whatever namespace that is. Where the device waits for a connection
// the opening may wait, too, no longer than ctx lasts; it goes on by itself then.
func (s System) Claim(ctx context.Context, i Index) error {
	err := s.openOnce(ctx, i, os.O_EXCL)
	switch {
	case errors.Is(err, syscall.EBUSY):
		return fmt.Errorf("%s: %w", i.Path(), ErrBusy)
	case err != nil:
		return fmt.Errorf("claim %s: %w", i.Name(), err)
	}
	return nil
}

// Rescan opens the device once: see [Driver.Rescan].
func (s System) Rescan(ctx context.Context, i Index) error {
	if err := s.openOnce(ctx, i, 0); err != nil {
		return fmt.Errorf("rescan %s: %w", i.Name(), err)
	}
	return nil
}

// openOnce opens a device for reading and closes it.
func (s System) openOnce(ctx context.Context, i Index, flag int) error {
	done := make(chan error, 1)
	go func() {
		f, err := os.OpenFile(s.Node(i), os.O_RDONLY|flag, 0)
		if err == nil {
			err = f.Close()
		}
		done <- err
	}()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("it does not answer: %w", context.Cause(ctx))
	}
}
