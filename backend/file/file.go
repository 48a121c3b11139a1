// Package file keeps an export's bytes in a regular file or a block device.
//
// Where the system offers it, trimming makes holes, zeroing keeps or makes them
// as asked, holes are found by asking the file system, and a write with FUA is
// made stable by itself, without the rest of the file. What a system does not
// offer is left out of the Caps, and block.Device emulates it or refuses.
//
// # Exclusive use
//
// A block device that is opened for writing is claimed (O_EXCL), which fails
// while it is mounted or part of something else. A regular file is locked the
// way QEMU's programs lock images, so that an image that a virtual machine holds
// is refused, and a virtual machine refuses an image that is served for writing.
// Several servers may serve one image, as with qemu-nbd. Config.Force overrides
// all of this.
package file

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync/atomic"

	"nbd.example/nbd/block"
)

// Config says what to open. Only Path is needed.
type Config struct {
	Path     string
	ReadOnly bool
	// Direct bypasses the page cache. Requests are then aligned to the device's
	// blocks on their way.
	Direct bool
	// Sync makes every write stable before it returns.
	Sync bool
	// Size is the size in bytes that is offered. 0 takes that of the file. A
	// regular file that is smaller grows, and one that is opened for reading
	// only must not be smaller.
	Size int64
	// Force opens what is in use by others.
	Force bool
	// Open opens files. Nil means os.OpenFile.
	Open func(name string, flag int, perm fs.FileMode) (*os.File, error)
	// Stat says what kind of file it is, before it is opened. Nil means os.Stat.
	Stat func(name string) (fs.FileInfo, error)
}

// File is a back end on one open file. Its methods may be called concurrently.
type File struct {
	f        *os.File
	fd       uintptr
	config   Config
	size     int64
	device   bool  // a block device, not a regular file
	align    int64 // what direct I/O and discards need, in bytes; 1 if nothing
	caps     block.Caps
	sys      system // what only this operating system has
	spanless atomic.Bool
}

var (
	_ block.Writer     = (*File)(nil)
	_ block.Flusher    = (*File)(nil)
	_ block.Trimmer    = (*File)(nil)
	_ block.ZeroWriter = (*File)(nil)
)

// Open opens, locks and measures the file.
func Open(c Config) (*File, error) {
	if c.Open == nil {
		c.Open = os.OpenFile
	}
	if c.Stat == nil {
		c.Stat = os.Stat
	}
	f := &File{config: c, align: 1}
	if err := f.open(); err != nil {
		return nil, fmt.Errorf("open %s: %w", c.Path, err)
	}
	if err := f.measure(); err != nil {
		f.f.Close()
		return nil, fmt.Errorf("open %s: %w", c.Path, err)
	}
	f.caps = f.abilities()
	return f, nil
}

func (f *File) open() error {
	flag := os.O_RDWR
	if f.config.ReadOnly {
		flag = os.O_RDONLY
	}
	// The kind of file decides on the flags; asking before opening keeps a pipe
	// or a terminal from being opened at all.
	info, err := f.config.Stat(f.config.Path)
	if err != nil {
		return plain(err)
	}
	switch mode := info.Mode(); {
	case mode.IsRegular():
	case mode&os.ModeDevice != 0 && (mode&os.ModeCharDevice == 0 || rawCharacterDevices):
		f.device = true
	case mode.IsDir():
		return errors.New("is a directory; an export is a regular file or a block device")
	default:
		return fmt.Errorf("is neither a regular file nor a block device, but %s", mode.Type())
	}
	file, err := f.config.Open(f.config.Path, flag|f.openFlags(), 0)
	if err != nil {
		return f.explainOpen(err)
	}
	f.f, f.fd = file, file.Fd()
	if !f.config.Force {
		if err := f.lock(); err != nil {
			file.Close()
			return err
		}
	}
	return nil
}

// plain takes the operation and the path off an error of package os, since the
// caller names them.
func plain(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}

// measure finds the size, and sets it where the configuration wants another.
func (f *File) measure() error {
	size, err := f.deviceSize()
	if err != nil {
		return fmt.Errorf("finding the size: %w", err)
	}
	if err := f.findAlignment(); err != nil {
		return err
	}
	want := f.config.Size
	switch {
	case want == 0:
		want = size
	case want < 0:
		return fmt.Errorf("the wanted size of %d bytes is negative", want)
	case want > size && (f.device || f.config.ReadOnly):
		return fmt.Errorf("it has %d bytes, fewer than the wanted %d", size, want)
	case want > size:
		if err := f.f.Truncate(want); err != nil {
			return fmt.Errorf("growing it from %d to %d bytes: %w", size, want, plain(err))
		}
	}
	f.size = want
	if f.config.Direct && want%f.align != 0 {
		return fmt.Errorf("its size of %d bytes is not a multiple of %d, as direct I/O needs", want, f.align)
	}
	return nil
}

// Caps describes the file.
func (f *File) Caps() block.Caps { return f.caps }

func (f *File) abilities() block.Caps {
	c := block.Caps{Size: f.size, ReadOnly: f.config.ReadOnly, MultiConn: true, Instance: f.instance()}
	if f.config.Direct {
		c.BlockSize.Minimum = f.align
		c.BlockSize.Preferred = max(f.align, 4096)
	}
	f.sysAbilities(&c)
	return c
}

// ReadAt fills p from off.
func (f *File) ReadAt(_ context.Context, p []byte, off int64) error {
	if f.config.Direct && !aligned(p, f.align) {
		buf := bounce(len(p), f.align)
		err := f.readAt(buf, off)
		copy(p, buf)
		return err
	}
	return f.readAt(p, off)
}

func (f *File) readAt(p []byte, off int64) error {
	n, err := f.f.ReadAt(p, off)
	switch {
	case n == len(p):
		return nil
	case err == io.EOF:
		return &block.OffsetError{Off: off + int64(n), Err: fmt.Errorf("read %s: it has become smaller, %d of its %d bytes are left: %w",
			f.config.Path, off+int64(n), f.size, io.ErrUnexpectedEOF)}
	}
	return &block.OffsetError{Off: off + int64(n), Err: err}
}

// WriteAt writes p at off; with FUA it returns when p is stable.
func (f *File) WriteAt(_ context.Context, p []byte, off int64, flags block.Flags) error {
	if f.config.Direct && !aligned(p, f.align) {
		buf := bounce(len(p), f.align)
		copy(buf, p)
		p = buf
	}
	if flags&block.FUA != 0 && !f.config.Sync {
		return f.writeStable(p, off)
	}
	return f.writeAt(p, off)
}

func (f *File) writeAt(p []byte, off int64) error {
	n, err := f.f.WriteAt(p, off)
	if err != nil {
		return &block.OffsetError{Off: off + int64(n), Err: err}
	}
	return nil
}

// Flush makes all writes stable.
func (f *File) Flush(context.Context) error { return f.datasync() }

// finish makes a change stable if its flags want it.
func (f *File) finish(err error, flags block.Flags) error {
	if err != nil || flags&block.FUA == 0 {
		return err
	}
	if err := f.datasync(); err != nil {
		return fmt.Errorf("%w: %w", block.ErrNotStable, err)
	}
	return nil
}

// Trim makes a hole. Where the file system cannot, it does nothing.
func (f *File) Trim(_ context.Context, off, n int64, flags block.Flags) error {
	lo, hi := roundUp(off, f.discardAlign()), roundDown(off+n, f.discardAlign())
	if lo >= hi {
		return nil
	}
	err := f.discard(lo, hi-lo)
	if errors.Is(err, errors.ErrUnsupported) {
		err = nil // it is a hint
	}
	return f.finish(err, flags)
}

// WriteZeroes zeroes a range without writing it, or returns errors.ErrUnsupported.
func (f *File) WriteZeroes(_ context.Context, off, n int64, flags block.Flags) error {
	a := f.discardAlign()
	lo, hi := roundUp(off, a), roundDown(off+n, a)
	if lo >= hi || flags&block.FastZero != 0 && (lo != off || hi != off+n) {
		return fmt.Errorf("%w: zeroing parts of a block", errors.ErrUnsupported)
	}
	if err := f.zero(lo, hi-lo, flags&block.NoHole != 0, flags&block.FastZero != 0); err != nil {
		return err
	}
	if err := f.writeZeroes(off, lo-off); err != nil {
		return err
	}
	return f.finish(f.writeZeroes(hi, off+n-hi), flags)
}

// writeZeroes writes fewer zeroes than a block has bytes.
func (f *File) writeZeroes(off, n int64) error {
	if n == 0 {
		return nil
	}
	return f.writeAt(make([]byte, n), off)
}

// Close closes the file, and with it gives up its locks.
func (f *File) Close() error { return f.f.Close() }

func roundUp(v, unit int64) int64   { return (v + unit - 1) / unit * unit }
func roundDown(v, unit int64) int64 { return v / unit * unit }
