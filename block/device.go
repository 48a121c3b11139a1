package block

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"

	"nbd.example/nbd/internal/ranges"
)

// Device is what the server, the layers and the tools hold. All its methods may
// be called concurrently, but for Close. A Device keeps no buffer after a call
// returns.
type Device struct {
	b      Backend
	w      Writer
	f      Flusher
	t      Trimmer
	z      ZeroWriter
	e      Extenter
	c      Cacher
	g      Grower
	direct Direct
	mapper Mapper

	caps   Caps         // but for Size
	size   atomic.Int64 // bytes; it only grows
	min    int64        // caps.BlockSize.Minimum
	blocks ranges.Queue // changes, in whole blocks; used only if min > 1

	broken atomic.Pointer[error]       // set by the first failed flush
	tell   atomic.Pointer[func(error)] // whom to tell of it

	flushing sync.Mutex   // one flush of the back end at a time
	begun    atomic.Int64 // the number of the last one that began
	done     int64        // the number of the last one that succeeded; under flushing
	once     sync.Once
	closed   error
}

// New makes a Device of b. It is the only place that looks for optional
// interfaces. If it fails, b is still the caller's to close.
func New(b Backend) (*Device, error) {
	d := &Device{b: b, caps: b.Caps()}
	d.w, _ = b.(Writer)
	d.f, _ = b.(Flusher)
	d.t, _ = b.(Trimmer)
	d.z, _ = b.(ZeroWriter)
	d.e, _ = b.(Extenter)
	d.c, _ = b.(Cacher)
	d.g, _ = b.(Grower)
	d.direct, _ = b.(Direct)
	d.mapper, _ = b.(Mapper)
	if err := d.settle(); err != nil {
		return nil, fmt.Errorf("%T: %w", b, err)
	}
	return d, nil
}

// Stack puts layers over base, the first one lowest. If it fails it closes
// everything.
func Stack(base Backend, layers ...Layer) (*Device, error) {
	d, err := New(base)
	if err != nil {
		return nil, errors.Join(err, base.Close())
	}
	for _, l := range layers {
		b, err := l(d)
		if err != nil {
			return nil, errors.Join(err, d.Close())
		}
		next, err := New(b)
		if err != nil {
			return nil, errors.Join(err, b.Close())
		}
		d = next
	}
	return d, nil
}

// settle resolves every Auto and refuses promises that cannot be kept.
func (d *Device) settle() error {
	c := &d.caps
	if c.BlockSize.Minimum == 0 {
		c.BlockSize.Minimum = 1
	}
	if c.BlockSize.Preferred == 0 {
		c.BlockSize.Preferred = 4096
	}
	c.BlockSize.Preferred = max(c.BlockSize.Preferred, c.BlockSize.Minimum)
	d.min = c.BlockSize.Minimum
	switch {
	case d.min < 1 || d.min > 1<<16 || d.min&(d.min-1) != 0:
		return fmt.Errorf("minimum block size %d is not a power of two up to 65536", d.min)
	case c.BlockSize.Maximum != 0 && (c.BlockSize.Maximum < d.min || c.BlockSize.Maximum%d.min != 0):
		return fmt.Errorf("maximum block size %d is not a multiple of the minimum %d", c.BlockSize.Maximum, d.min)
	case c.Size < 0 || c.Size%d.min != 0:
		return fmt.Errorf("size %d is not a multiple of the block size %d", c.Size, d.min)
	}
	if d.w == nil {
		c.ReadOnly = true
	}
	if c.ReadOnly {
		c.FUA, c.Trim, c.Zero, c.FastZero = None, None, None, None
	}
	var err error
	promise := func(what string, l *Level, native, emulable bool) {
		switch {
		case *l == Auto && native:
			*l = Native
		case *l == Auto && emulable:
			*l = Emulated
		case *l == Auto:
			*l = None
		case *l == Native && !native, *l == Emulated && !emulable:
			err = errors.Join(err, fmt.Errorf("promises %s, and has no method for it", what))
		}
	}
	promise("Flush", &c.Flush, d.f != nil, false)
	if c.FUA == Auto && c.Flush == None {
		c.FUA = None
	}
	promise("FUA", &c.FUA, c.FUA == Native && !c.ReadOnly, c.Flush != None)
	promise("Trim", &c.Trim, d.t != nil, false)
	promise("Zero", &c.Zero, d.z != nil, !c.ReadOnly)
	promise("FastZero", &c.FastZero, d.z != nil && c.Zero == Native, c.Zero != None)
	promise("Extents", &c.Extents, d.e != nil, true)
	promise("Cache", &c.Cache, d.c != nil, true)
	if c.Instance == "" {
		c.Instance = NewInstance()
	}
	d.size.Store(c.Size)
	return err
}

// NewInstance makes up a name for new contents.
func NewInstance() string {
	var b [16]byte
	rand.Read(b[:])
	return fmt.Sprintf("%x", b)
}

// Caps returns what d can do, with every Level resolved.
func (d *Device) Caps() Caps {
	c := d.caps
	c.Size = d.size.Load()
	return c
}

// Size returns the size in bytes. It changes by Grow alone, and never becomes smaller.
func (d *Device) Size() int64 { return d.size.Load() }

// Grow looks how large the back end is by now, and makes d as large, if that is more
// than before. It returns what is there, in bytes, rounded down to a multiple of the
// minimum block size and of unit, which is a power of two: Size, or less, if the back
// end has become smaller. Then d keeps its size, which its users rely on. A back end that
// is no [Grower] keeps its size, too.
func (d *Device) Grow(unit int64) (found int64, err error) {
	if d.g == nil {
		return d.Size(), nil
	}
	if found, err = d.g.Remeasure(); err != nil {
		return 0, err
	}
	found &^= max(unit, d.min) - 1
	for {
		before := d.size.Load()
		if found <= before || d.size.CompareAndSwap(before, found) {
			return found, nil
		}
	}
}

// Broken returns the error of the flush that failed, or nil. Such a device is
// never written again; to go on, it must be closed and opened.
func (d *Device) Broken() error {
	if p := d.broken.Load(); p != nil {
		return *p
	}
	return nil
}

// OnBroken has f called, once, when a flush fails; see Broken. Only the first call for a
// Device has an effect, and only if it comes before that flush. F is called by whoever
// asked for the flush, and must not use the Device.
func (d *Device) OnBroken(f func(error)) { d.tell.CompareAndSwap(nil, &f) }

// Close closes the back end, once; later calls return what the first returned.
// No other method may be under way or follow.
func (d *Device) Close() error {
	d.once.Do(func() { d.closed = d.b.Close() })
	return d.closed
}

func (d *Device) inside(off, n int64) error {
	if size := d.Size(); off < 0 || n < 0 || off > size || n > size-off {
		return fmt.Errorf("%w: %d bytes at %d of %d", ErrRange, n, off, size)
	}
	return nil
}

// writable checks what all changes have in common.
func (d *Device) writable(off, n int64) error {
	if d.caps.ReadOnly {
		return ErrReadOnly
	}
	if err := d.inside(off, n); err != nil {
		return err
	}
	return d.Broken()
}

// down and up round to the minimum block size.
func (d *Device) down(off int64) int64 { return off &^ (d.min - 1) }
func (d *Device) up(off int64) int64   { return (off + d.min - 1) &^ (d.min - 1) }

func (d *Device) aligned(off, n int64) bool { return (off|n)&(d.min-1) == 0 }

// lock keeps other changes out of the blocks that a change touches, and returns
// what lets them in again. Only a back end that needs alignment needs it.
func (d *Device) lock(off, n int64) (unlock func()) {
	if d.min == 1 {
		return func() {}
	}
	lo := d.down(off)
	ready := make(chan struct{})
	e := &ranges.Entry{Unblocked: func() { close(ready) }}
	if !d.blocks.Add(e, lo, d.up(off+n)-lo) {
		<-ready
	}
	return func() { d.blocks.Remove(e) }
}

// ReadAt fills p from off.
func (d *Device) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := d.inside(off, int64(len(p))); err != nil {
		return err
	}
	if len(p) == 0 {
		return nil
	}
	if d.aligned(off, int64(len(p))) {
		return d.read(ctx, p, off)
	}
	lo, hi := d.down(off), d.up(off+int64(len(p)))
	buf := getScratch(int(hi - lo))
	defer putScratch(buf)
	if err := d.read(ctx, *buf, lo); err != nil {
		return err
	}
	copy(p, (*buf)[off-lo:])
	return nil
}

// read reads aligned bytes, in pieces that the back end takes.
func (d *Device) read(ctx context.Context, p []byte, off int64) error {
	limit := d.caps.BlockSize.Maximum
	if limit == 0 || int64(len(p)) <= limit {
		return d.b.ReadAt(ctx, p, off)
	}
	for len(p) > 0 {
		n := min(int64(len(p)), limit)
		if err := d.b.ReadAt(ctx, p[:n], off); err != nil {
			return err
		}
		p, off = p[n:], off+n
	}
	return nil
}

// WriteAt writes p at off. The only flag is FUA.
func (d *Device) WriteAt(ctx context.Context, p []byte, off int64, f Flags) error {
	if err := d.writable(off, int64(len(p))); err != nil {
		return err
	}
	if len(p) == 0 {
		return nil
	}
	defer d.lock(off, int64(len(p)))()
	return d.stable(ctx, f&FUA, func(f Flags) error { return d.writeLocked(ctx, p, off, f) })
}

// writeLocked writes inside a locked range, aligned or not.
func (d *Device) writeLocked(ctx context.Context, p []byte, off int64, f Flags) error {
	if d.aligned(off, int64(len(p))) {
		return d.write(ctx, p, off, f)
	}
	lo, hi := d.down(off), d.up(off+int64(len(p)))
	buf := getScratch(int(hi - lo))
	defer putScratch(buf)
	b := *buf
	if lo < off {
		if err := d.read(ctx, b[:d.min], lo); err != nil {
			return err
		}
	}
	if last := hi - d.min; off+int64(len(p)) < hi && (last > lo || lo == off) {
		if err := d.read(ctx, b[last-lo:], last); err != nil {
			return err
		}
	}
	copy(b[off-lo:], p)
	return d.write(ctx, b, lo, f)
}

// write writes aligned bytes, in pieces that the back end takes.
func (d *Device) write(ctx context.Context, p []byte, off int64, f Flags) error {
	limit := d.caps.BlockSize.Maximum
	if limit == 0 || int64(len(p)) <= limit {
		return d.w.WriteAt(ctx, p, off, f)
	}
	for len(p) > 0 {
		n := min(int64(len(p)), limit)
		if err := d.w.WriteAt(ctx, p[:n], off, f); err != nil {
			return err
		}
		p, off = p[n:], off+n
	}
	return nil
}

// stable runs change with FUA as the back end can have it, and sees to it that
// the effect is stable when it returns.
func (d *Device) stable(ctx context.Context, f Flags, change func(Flags) error) error {
	if f&FUA == 0 {
		return change(f)
	}
	switch d.caps.FUA {
	case Native:
		err := change(f)
		if err != nil && losesWrites(err) {
			return d.breakDown(err)
		}
		return err
	case Emulated:
		if err := change(f &^ FUA); err != nil {
			return err
		}
		return d.Flush(ctx)
	}
	return fmt.Errorf("%w: FUA", errors.ErrUnsupported)
}

// losesWrites tells whether the error of a FUA change may hide that earlier
// data is lost. The system reports a failed write-back once; a request that was
// refused for a reason of its own hides nothing.
func losesWrites(err error) bool {
	for _, harmless := range []error{errors.ErrUnsupported, syscall.ENOSPC, syscall.EDQUOT, syscall.EFBIG, syscall.EINVAL, syscall.EPERM, context.Canceled, context.DeadlineExceeded} {
		if errors.Is(err, harmless) {
			return errors.Is(err, ErrNotStable)
		}
	}
	return true
}

// givenUp tells whether err says no more than that the caller stopped waiting: a
// client that leaves must not end the writes of all the others.
func givenUp(ctx context.Context, err error) bool {
	return ctx.Err() != nil && errors.Is(err, ctx.Err()) && !errors.Is(err, ErrNotStable)
}

// breakDown remembers that accepted data may be lost.
func (d *Device) breakDown(cause error) error {
	err := cause
	if !errors.Is(err, ErrNotStable) {
		err = fmt.Errorf("%w: %w", ErrNotStable, cause)
	}
	if d.broken.CompareAndSwap(nil, &err) {
		if tell := d.tell.Load(); tell != nil {
			(*tell)(err)
		}
	}
	return d.Broken()
}

// Flush makes stable what had been written before.
func (d *Device) Flush(ctx context.Context) error {
	if err := d.Broken(); err != nil {
		return err
	}
	if d.caps.Flush == None {
		return fmt.Errorf("%w: flush", errors.ErrUnsupported)
	}
	// The system tells of lost data once: of two flushes side by side, the second
	// could succeed before the first has noted that it failed. So one waits for
	// the other, and whoever finds that a whole one has passed meanwhile is done.
	next := d.begun.Load() + 1
	d.flushing.Lock()
	defer d.flushing.Unlock()
	if err := d.Broken(); err != nil || d.done >= next {
		return err
	}
	n := d.begun.Add(1)
	if err := d.f.Flush(ctx); err != nil {
		if givenUp(ctx, err) {
			return err
		}
		return d.breakDown(err)
	}
	d.done = n
	return d.Broken() // a FUA write may have failed meanwhile
}

// Trim lets go of a range. Blocks that are only partly inside are left alone.
func (d *Device) Trim(ctx context.Context, off, n int64, f Flags) error {
	if err := d.writable(off, n); err != nil {
		return err
	}
	if d.caps.Trim == None {
		return fmt.Errorf("%w: trim", errors.ErrUnsupported)
	}
	lo, hi := d.up(off), d.down(off+n)
	if lo >= hi {
		return nil
	}
	defer d.lock(lo, hi-lo)()
	return d.stable(ctx, f&FUA, func(f Flags) error { return d.t.Trim(ctx, lo, hi-lo, f) })
}

// Cache brings a range nearer.
func (d *Device) Cache(ctx context.Context, off, n int64) error {
	if err := d.inside(off, n); err != nil {
		return err
	}
	if n == 0 {
		return nil
	}
	lo, hi := d.down(off), d.up(off+n)
	switch d.caps.Cache {
	case Native:
		return d.c.Cache(ctx, lo, hi-lo)
	case Emulated:
		buf := getScratch(int(min(hi-lo, 1<<20)))
		defer putScratch(buf)
		for lo < hi {
			p := (*buf)[:min(int64(len(*buf)), hi-lo)]
			if err := d.read(ctx, p, lo); err != nil {
				return err
			}
			lo += int64(len(p))
			if err := ctx.Err(); err != nil {
				return err
			}
		}
		return nil
	}
	return fmt.Errorf("%w: cache", errors.ErrUnsupported)
}

// Extents calls add with consecutive extents from off on, until they cover n
// bytes or add returns false. They never reach beyond the device; the last one
// may reach beyond n. Each has at least one byte. The only flag is One.
func (d *Device) Extents(ctx context.Context, off, n int64, f Flags, add func(Extent) bool) error {
	if err := d.inside(off, n); err != nil {
		return err
	}
	if n == 0 {
		return nil
	}
	switch d.caps.Extents {
	case None:
		return fmt.Errorf("%w: extents", errors.ErrUnsupported)
	case Emulated:
		add(Extent{Length: d.Size() - off, Depth: 1})
		return nil
	}
	lo, hi := d.down(off), d.up(off+n)
	at := lo // where the next extent of the back end begins
	more, size := true, d.Size()
	err := d.e.Extents(ctx, lo, hi-lo, f&One, func(x Extent) bool {
		end := at + min(x.Length, size-at) // at + x.Length may be more than 2^63
		x.Length = end - max(at, off)
		at = end
		if x.Length > 0 && more {
			more = add(x) && at < off+n
		}
		return more
	})
	return err
}
