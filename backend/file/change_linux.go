package file

import (
	"context"
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"nbd.example/nbd/block"
)

func (f *File) datasync() error {
	for {
		if err := unix.Fdatasync(int(f.fd)); err != unix.EINTR {
			return os.NewSyscallError("fdatasync", err)
		}
	}
}

// offsetHalves returns an offset as preadv2 and pwritev2 take it on every
// architecture: as two words, of which one of 64 bits leaves nothing to the other.
func offsetHalves(off int64) (lo, hi uintptr) {
	return uintptr(off), uintptr(uint64(off) >> 32)
}

// writeStable writes p and makes it stable, and no more than it.
func (f *File) writeStable(p []byte, off int64) error {
	for done := 0; done < len(p); {
		iov := unix.Iovec{Base: &p[done]}
		iov.SetLen(len(p) - done)
		at := off + int64(done)
		lo, hi := offsetHalves(at)
		n, _, err := unix.Syscall6(unix.SYS_PWRITEV2, f.fd, uintptr(unsafe.Pointer(&iov)), 1, lo, hi, unix.RWF_DSYNC)
		switch err {
		case 0:
			done += int(n)
		case unix.EINTR:
		case unix.EOPNOTSUPP, unix.ENOSYS:
			if err := f.writeAt(p[done:], at); err != nil {
				return err
			}
			return f.finish(true)
		default:
			return f.explainStable(p[done:], at, err)
		}
	}
	return nil
}

// explainStable tells a failed write from a failed write-back. The call does
// one after the other and has one error for both; after a failed write-back,
// which the system reports only once, data of others may be lost too.
func (f *File) explainStable(p []byte, off int64, err error) error {
	if again := f.writeAt(p, off); again != nil {
		return again // it was the write, and nothing was made stable
	}
	return &block.OffsetError{Off: off, Err: fmt.Errorf("%w: %w", block.ErrNotStable, os.NewSyscallError("pwritev2", err))}
}

// discardAlign is what the ranges of discard and zero must be aligned to.
func (f *File) discardAlign() int64 {
	if f.device {
		return max(f.sys.sector, 1)
	}
	return f.align
}

func (f *File) discard(off, n int64) error {
	if !f.device {
		return f.punch(off, n)
	}
	r := [2]uint64{uint64(off), uint64(n)}
	return unsupported("BLKDISCARD", f.ioctl(unix.BLKDISCARD, unsafe.Pointer(&r)))
}

// punch makes a hole, which reads as zeroes. On a disk it succeeds only if that
// needs no writing.
func (f *File) punch(off, n int64) error {
	f.coolRange(off, n)
	err := f.fallocate(unix.FALLOC_FL_PUNCH_HOLE, off, n)
	f.sys.known.forget()
	return err
}

// zero makes a range read as zeroes without writing it from here.
func (f *File) zero(ctx context.Context, off, n int64, noHole, fast bool) error {
	switch {
	case !f.device && noHole:
		return f.fallocate(unix.FALLOC_FL_ZERO_RANGE, off, n)
	case !f.device:
		return f.punch(off, n)
	case noHole && fast:
		// The kernel writes where a disk cannot do it, and has no flag against it.
		return fmt.Errorf("%w: allocated zeroes on a disk might be slow", errors.ErrUnsupported)
	case !noHole:
		if err := f.punch(off, n); err == nil || fast || !errors.Is(err, errors.ErrUnsupported) {
			return err
		}
	}
	return f.zeroOut(ctx, off, n)
}

// zeroOut has the kernel write zeroes to a disk. It cannot be interrupted, so it
// is done in pieces.
func (f *File) zeroOut(ctx context.Context, off, n int64) error {
	const piece = 64 << 20
	for n > 0 {
		r := [2]uint64{uint64(off), uint64(min(n, piece))}
		if err := f.ioctl(unix.BLKZEROOUT, unsafe.Pointer(&r)); err != nil {
			return unsupported("BLKZEROOUT", err)
		}
		off, n = off+int64(r[1]), n-int64(r[1])
		if err := ctx.Err(); err != nil && n > 0 {
			return err
		}
	}
	return nil
}

func (f *File) fallocate(mode uint32, off, n int64) error {
	for {
		if err := unix.Fallocate(int(f.fd), mode|unix.FALLOC_FL_KEEP_SIZE, off, n); err != unix.EINTR {
			return unsupported("fallocate", err)
		}
	}
}

// unsupported gives one name to the many ways of saying "not here".
func unsupported(call string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOTTY), errors.Is(err, unix.ENOSYS), errors.Is(err, unix.ENODEV):
		return fmt.Errorf("%s: %w", call, errors.ErrUnsupported)
	}
	return os.NewSyscallError(call, err)
}

// Cache has the system read ahead. It goes on after Cache has returned.
func (f *File) Cache(ctx context.Context, off, n int64) error {
	const piece = 8 << 20
	for ; n > 0; off, n = off+piece, n-piece {
		if err := unix.Fadvise(int(f.fd), off, min(n, piece), unix.FADV_WILLNEED); err != nil {
			return os.NewSyscallError("fadvise", err)
		}
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	return nil
}
