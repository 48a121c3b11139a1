package kernel

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

// Tuning is what a device's queue in sysfs lets one set beside the driver. Zero values
// change nothing.
type Tuning struct {
	// MaxRequest is the most that one request asks for, in bytes (queue/max_sectors_kb).
	// The system rounds it to 1,024 bytes and takes none below a page. It outlives
	// attachments.
	MaxRequest int64
}

// tunePatience is how long the kernel may take to let go of a queue.
const tunePatience = 10 * time.Second

// Tune writes what t sets. In containers /sys may be read-only: the error wraps
// syscall.EROFS then, or [os.ErrPermission].
//
// Newer kernels (seen with 6.12) stop the queue for it: no new request begins, and it is
// waited until those under way are answered. If the only connection dies meanwhile, that
// takes until there is another one. So tune a device that is not at work, and expect
// [os.ErrDeadlineExceeded] after ten seconds; what was to be written then comes later.
func (s System) Tune(i Index, t Tuning) error {
	var failed []error
	set := func(name string, value int64) {
		path := filepath.Join(s.block(i), "queue", name)
		if err := withPatience(func() error { return writeValue(path, value) }); err != nil {
			failed = append(failed, fmt.Errorf("tune %s: %w", i.Name(), err))
		}
	}
	if t.MaxRequest > 0 {
		set("max_sectors_kb", t.MaxRequest/1024)
	}
	return errors.Join(failed...)
}

// withPatience does not wait longer than tunePatience for f.
func withPatience(f func() error) error {
	done := make(chan error, 1)
	go func() { done <- f() }()
	select {
	case err := <-done:
		return err
	case <-time.After(tunePatience):
		return fmt.Errorf("the kernel waits for requests that are under way: %w", os.ErrDeadlineExceeded)
	}
}

// writeValue writes to a file of sysfs.
func writeValue(path string, value int64) error {
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteString(strconv.FormatInt(value, 10))
	return errors.Join(err, f.Close())
}

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
