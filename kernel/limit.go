package kernel

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"
)

// limitPatience is how long the kernel may take to let go of a queue.
const limitPatience = 10 * time.Second

// LimitRequests sets the most that one request of a device asks for, in bytes
// (queue/max_sectors_kb). The system rounds it to 1,024 bytes and takes none below a page.
// It outlives attachments. In containers /sys may be read-only: the error wraps
// syscall.EROFS then, or [os.ErrPermission].
//
// Newer kernels (seen with 6.12) stop the queue for it: no new request begins, and it is
// waited until those under way are answered. If the only connection dies meanwhile, that
// takes until there is another one. So limit a device that is not at work, and expect
// [os.ErrDeadlineExceeded] after ten seconds; what was to be written then comes later, as
// it does when ctx ends before.
func (s System) LimitRequests(ctx context.Context, i Index, most int64) error {
	ctx, cancel := context.WithTimeoutCause(ctx, limitPatience,
		fmt.Errorf("the kernel waits for requests that are under way: %w", os.ErrDeadlineExceeded))
	defer cancel()
	path := filepath.Join(s.block(i), "queue", "max_sectors_kb")
	done := make(chan error, 1)
	go func() { done <- writeValue(path, most/1024) }()
	var err error
	select {
	case err = <-done:
	case <-ctx.Done():
		err = context.Cause(ctx)
	}
	if err != nil {
		return fmt.Errorf("limit the requests of %s: %w", i.Name(), err)
	}
	return nil
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

// SuitRequests lets the kernel ask for no more at a time than a server takes, most bytes, 0
// if it has not said so: what is longer would be answered with errors. It returns what the
// most is now, and what it was before, if it was lowered or may be; both are 0 where the system does
// not tell. proto.md, "Block size constraints".
func SuitRequests(ctx context.Context, d Driver, i Index, most uint32) (now, before int64, err error) {
	info, err := d.Info(i)
	if errors.Is(err, ErrNoDevice) || errors.Is(err, ErrNoModule) {
		return 0, 0, nil // without sysfs nothing is known, and nothing can be set
	}
	if err != nil {
		return 0, 0, err
	}
	if most == 0 || int64(most) >= info.MaxRequest {
		return info.MaxRequest, 0, nil
	}
	want := int64(most) - int64(most)%max(info.BlockSize, 1024)
	if err := d.LimitRequests(ctx, i, want); err != nil {
		// What was to be written may come later.
		return info.MaxRequest, info.MaxRequest, fmt.Errorf("the server takes requests of at most %d bytes, the kernel makes some of %d, and cannot be told: %w", most, info.MaxRequest, err)
	}
	return want, info.MaxRequest, nil
}
