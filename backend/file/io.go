package file

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"nbd.example/nbd/block"
)

// ReadAt fills p from off.
func (f *File) ReadAt(_ context.Context, p []byte, off int64) error {
	if aligned(p, f.align) {
		return f.readAt(p, off)
	}
	return inPieces(p, f.align, func(buf, part []byte, at int) error {
		err := f.readAt(buf, off+int64(at))
		copy(part, buf)
		return err
	})
}

func (f *File) readAt(p []byte, off int64) error {
	n, err := f.f.ReadAt(p, off)
	end := off + int64(n)
	switch {
	case n == len(p):
		return nil
	case err == io.EOF, f.align > 1 && f.endsAt(end):
		err = &fs.PathError{Op: "read", Path: f.config.Path, Err: fmt.Errorf("it has become smaller, %d of its %d bytes are left: %w",
			end, f.size.Load(), io.ErrUnexpectedEOF)}
	}
	return &block.OffsetError{Off: end, Err: err}
}

// endsAt tells whether a file ends there. A direct read that meets the end inside
// a block goes on from there, and fails for want of alignment.
func (f *File) endsAt(off int64) bool {
	info, err := f.f.Stat()
	return err == nil && !f.device && info.Size() <= off
}

// WriteAt writes p at off; with FUA it returns when p is stable.
func (f *File) WriteAt(_ context.Context, p []byte, off int64, flags block.Flags) error {
	write := f.writeAt
	byFlag := f.config.Sync && stableFlag // then writing is all it takes
	if (flags&block.FUA != 0 || f.config.Sync) && !byFlag {
		write = f.writeStable
	}
	if aligned(p, f.align) {
		return write(p, off)
	}
	return inPieces(p, f.align, func(buf, part []byte, at int) error {
		copy(buf, part)
		return write(buf, off+int64(at))
	})
}

func (f *File) writeAt(p []byte, off int64) error {
	f.sys.wrote(off, len(p))
	n, err := f.f.WriteAt(p, off)
	if err != nil {
		return &block.OffsetError{Off: off + int64(n), Err: sysError(err)}
	}
	return nil
}

// Flush makes all writes stable.
func (f *File) Flush(context.Context) error {
	if f.config.ReadOnly {
		return nil // not every system takes it for a call that changes nothing
	}
	return f.datasync()
}

// finish makes a change stable if it must be.
func (f *File) finish(stable bool) error {
	if !stable {
		return nil
	}
	if err := f.datasync(); err != nil {
		return fmt.Errorf("%w: %w", block.ErrNotStable, err)
	}
	return nil
}

// Trim makes a hole. Where that turns out to be impossible, it does nothing.
func (f *File) Trim(_ context.Context, off, n int64, flags block.Flags) error {
	lo, hi := roundUp(off, f.discardAlign()), roundDown(off+n, f.discardAlign())
	if lo >= hi {
		return nil
	}
	err := f.discard(lo, hi-lo)
	if err != nil && !errors.Is(err, errors.ErrUnsupported) { // it is a hint
		return err
	}
	return f.finish(flags&block.FUA != 0)
}

// WriteZeroes zeroes a range without writing it, or returns errors.ErrUnsupported.
func (f *File) WriteZeroes(ctx context.Context, off, n int64, flags block.Flags) error {
	a := f.discardAlign()
	lo, hi := roundUp(off, a), roundDown(off+n, a)
	if lo >= hi || flags&block.FastZero != 0 && (lo != off || hi != off+n) {
		return fmt.Errorf("%w: zeroing parts of a block", errors.ErrUnsupported)
	}
	if err := f.zero(ctx, lo, hi-lo, flags&block.NoHole != 0, flags&block.FastZero != 0); err != nil {
		return err
	}
	if err := f.writeZeroes(off, lo-off); err != nil {
		return err
	}
	if err := f.writeZeroes(hi, off+n-hi); err != nil {
		return err
	}
	// The flag for stable writes that the file was opened with covers no more
	// than writes.
	return f.finish(flags&block.FUA != 0 || f.config.Sync)
}

// writeZeroes writes fewer zeroes than a block has bytes.
func (f *File) writeZeroes(off, n int64) error {
	if n == 0 {
		return nil
	}
	return f.writeAt(make([]byte, n), off)
}

// Close closes the file, and with it gives up its locks. It makes nothing stable.
func (f *File) Close() error {
	f.sysClose()
	return f.f.Close()
}

func roundUp(v, unit int64) int64   { return (v + unit - 1) / unit * unit }
func roundDown(v, unit int64) int64 { return v / unit * unit }
