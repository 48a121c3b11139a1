// Package multi makes one device of several, one behind the other.
//
// # Concepts
//
// The parts follow each other without gaps, whatever their sizes: a file of 5000
// bytes and one of 10000 are a device of 15000. A part may be empty. Requests that
// cross borders are split; all else is passed to one part, the fast path
// included. Where a part wants alignment, the part rounds: the device has no
// smallest unit.
//
// [Open] makes such a device of the files NAME.0, NAME.1 and so on, up to the first
// number that no file has. That is the multifile of nbd-server, which it treats the same
// way: sizes are taken as they are, and files behind a gap do not belong to it.
// Unlike there, a file that is there and cannot be opened is an error, and not
// the end; and an empty file does not hide the first byte of the next.
//
// # Durability
//
// A flush flushes all parts, side by side. Write with FUA reaches the parts with FUA.
// The parts are not one whatever happens: a request that crosses a border may be
// cut in two by a crash, like any other that is longer than a sector.
package multi

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"runtime/debug"
	"sort"
	"sync"

	"nbd.example/nbd/backend/file"
	"nbd.example/nbd/block"
)

// Config says which files to open, and how.
type Config struct {
	// Path is the name of the files, without the number.
	Path string
	// ReadOnly, Direct, Sync and Force are as in file.Config, for each file.
	ReadOnly, Direct, Sync, Force bool
	// Open and Stat are as in file.Config.
	Open func(name string, flag int, perm fs.FileMode) (*os.File, error)
	Stat func(name string) (fs.FileInfo, error)
}

// Open opens files as one device.
func Open(c Config) (block.Backend, error) {
	stat := c.Stat
	if stat == nil {
		stat = os.Stat
	}
	var parts []*block.Device
	closeAll := func(err error) error {
		for _, p := range parts {
			err = errors.Join(err, p.Close())
		}
		return err
	}
	for i := 0; ; i++ {
		name := fmt.Sprintf("%s.%d", c.Path, i)
		if _, err := stat(name); errors.Is(err, fs.ErrNotExist) && i > 0 {
			break // other errors are told by the attempt to open it
		}
		f, err := file.Open(file.Config{
			Path: name, ReadOnly: c.ReadOnly, Direct: c.Direct, Sync: c.Sync, Force: c.Force, Open: c.Open, Stat: c.Stat,
		})
		if errors.Is(err, fs.ErrNotExist) {
			return nil, closeAll(fmt.Errorf("%w; the files of %s are numbered from 0", err, c.Path))
		}
		if err != nil {
			return nil, closeAll(err)
		}
		d, err := block.New(f)
		if err != nil {
			return nil, closeAll(errors.Join(err, f.Close()))
		}
		parts = append(parts, d)
	}
	b, err := New(parts)
	if err != nil {
		return nil, closeAll(err)
	}
	return b, nil
}

// New makes one device of parts, which belong to it from then on: it closes them.
// If New fails, they are still the caller's.
func New(parts []*block.Device) (block.Backend, error) {
	m := &multi{all: parts}
	for i, d := range parts {
		n := d.Size()
		if n > math.MaxInt64-m.size {
			return nil, fmt.Errorf("multi: part %d of %d: together the parts have more than 2^63 bytes", i, len(parts))
		}
		if n > 0 {
			m.parts = append(m.parts, part{d, m.size, m.size + n})
		}
		m.size += n
	}
	m.caps = m.abilities()
	return m, nil
}

type multi struct {
	all   []*block.Device
	parts []part // those that have bytes, in order
	size  int64
	caps  block.Caps
}

// part is a device with its place.
type part struct {
	dev        *block.Device
	start, end int64 // bytes
}

var (
	_ block.Backend    = (*multi)(nil)
	_ block.Writer     = (*multi)(nil)
	_ block.Flusher    = (*multi)(nil)
	_ block.Trimmer    = (*multi)(nil)
	_ block.ZeroWriter = (*multi)(nil)
	_ block.Extenter   = (*multi)(nil)
	_ block.Cacher     = (*multi)(nil)
	_ block.Direct     = (*multi)(nil)
)

// abilities returns what the parts can do together.
func (m *multi) abilities() block.Caps {
	c := block.Caps{
		Size: m.size, MultiConn: true, FreeFlush: true, Depth: true,
		Flush: block.Native, FUA: block.Native, Trim: block.None, Zero: block.Native, FastZero: block.Native,
		Extents: block.Emulated, Cache: block.Emulated,
	}
	names := sha256.New()
	for _, d := range m.all {
		p := d.Caps()
		fmt.Fprintf(names, "%d %s\n", p.Size, p.Instance)
		c.BlockSize.Preferred = max(c.BlockSize.Preferred, p.BlockSize.Preferred)
		c.ReadOnly = c.ReadOnly || p.ReadOnly
		c.Rotational = c.Rotational || p.Rotational
		c.MultiConn = c.MultiConn && p.MultiConn
		c.FreeFlush = c.FreeFlush && p.FreeFlush && d.HasDirect()
		c.Depth = c.Depth && p.Depth
		c.Flush, c.FUA = all(c.Flush, p.Flush), all(c.FUA, p.FUA)
		if p.FastZero != block.Native {
			c.FastZero = block.Emulated
		}
		c.Trim = some(c.Trim, p.Trim != block.None)
		c.Extents, c.Cache = some(c.Extents, p.Extents == block.Native), some(c.Cache, p.Cache == block.Native)
	}
	c.Instance = fmt.Sprintf("%x", names.Sum(nil)[:16])
	return c
}

// all and some are for what all parts need to have, and for what is good where it is.
func all(l, part block.Level) block.Level {
	if part == block.None {
		return block.None
	}
	return l
}

func some(l block.Level, part bool) block.Level {
	if part {
		return block.Native
	}
	return l
}

// Caps implements block.Backend.
func (m *multi) Caps() block.Caps { return m.caps }

// at returns the number of the part that has the byte at off.
func (m *multi) at(off int64) int {
	return sort.Search(len(m.parts), func(i int) bool { return off < m.parts[i].end })
}

// each calls do for what each part has of a range: with n bytes at off of the part,
// which are those from i on of the range.
func (m *multi) each(off, n int64, do func(p part, off, n, i int64) error) error {
	for k, i := m.at(off), int64(0); i < n; k++ {
		p := m.parts[k]
		here := min(n-i, p.end-off-i)
		if err := do(p, off+i-p.start, here, i); err != nil {
			return p.moved(err)
		}
		i += here
	}
	return nil
}

// moved corrects the place that an error of a part names.
func (p part) moved(err error) error {
	var at *block.OffsetError
	if err == nil || !errors.As(err, &at) {
		return err
	}
	return &block.OffsetError{Off: at.Off + p.start, Err: err}
}

// ReadAt implements block.Backend.
func (m *multi) ReadAt(ctx context.Context, b []byte, off int64) error {
	return m.each(off, int64(len(b)), func(p part, off, n, i int64) error { return p.dev.ReadAt(ctx, b[i:i+n], off) })
}

// WriteAt implements block.Writer.
func (m *multi) WriteAt(ctx context.Context, b []byte, off int64, f block.Flags) error {
	return m.each(off, int64(len(b)), func(p part, off, n, i int64) error { return p.dev.WriteAt(ctx, b[i:i+n], off, f) })
}

// Flush implements block.Flusher. Every part is flushed, also when another fails.
func (m *multi) Flush(ctx context.Context) error {
	if len(m.parts) == 1 {
		return m.parts[0].moved(m.parts[0].dev.Flush(ctx))
	}
	errs := make([]error, len(m.parts))
	var flushes sync.WaitGroup
	for i, p := range m.parts {
		flushes.Go(func() { errs[i] = p.flush(ctx) })
	}
	flushes.Wait()
	return errors.Join(errs...)
}

// flush flushes a part, in a goroutine of its own: no caller is there that a panic could
// end, and all others must go on.
func (p part) flush(ctx context.Context) (err error) {
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("multi: panic while flushing: %v\n%s", v, debug.Stack())
		}
	}()
	return p.moved(p.dev.Flush(ctx))
}

// Trim implements block.Trimmer. Parts that cannot are left as they are.
func (m *multi) Trim(ctx context.Context, off, n int64, f block.Flags) error {
	return m.each(off, n, func(p part, off, n, _ int64) error {
		if p.dev.Caps().Trim == block.None {
			return nil
		}
		return p.dev.Trim(ctx, off, n, f)
	})
}

// WriteZeroes implements block.ZeroWriter. Across a border nothing is fast: the
// second part might refuse what the first one has done.
func (m *multi) WriteZeroes(ctx context.Context, off, n int64, f block.Flags) error {
	if f&block.FastZero != 0 && off+n > m.parts[m.at(off)].end {
		return fmt.Errorf("multi: %w: fast zeroes across a border of parts", errors.ErrUnsupported)
	}
	return m.each(off, n, func(p part, off, n, _ int64) error { return p.dev.WriteZeroes(ctx, off, n, f) })
}

// Extents implements block.Extenter.
func (m *multi) Extents(ctx context.Context, off, n int64, f block.Flags, add func(block.Extent) bool) error {
	for k := m.at(off); n > 0; k++ {
		p := m.parts[k]
		here := min(n, p.end-off)
		told, more := int64(0), true
		one := func(x block.Extent) bool {
			x.Length = min(x.Length, p.end-off-told)
			if !m.caps.Depth {
				x.Depth = 0
			}
			told += x.Length
			more = add(x)
			return more && told < here
		}
		var err error
		if p.dev.Caps().Extents == block.None {
			one(block.Extent{Length: here, Depth: 1})
		} else {
			err = p.dev.Extents(ctx, off-p.start, here, f, one)
		}
		if err != nil || !more || told < here || f&block.One != 0 {
			return p.moved(err)
		}
		off, n = off+told, n-told
	}
	return nil
}

// Cache implements block.Cacher.
func (m *multi) Cache(ctx context.Context, off, n int64) error {
	return m.each(off, n, func(p part, off, n, _ int64) error {
		if p.dev.Caps().Cache == block.None {
			return nil
		}
		return p.dev.Cache(ctx, off, n)
	})
}

// Close implements block.Backend.
func (m *multi) Close() error {
	var err error
	for _, d := range m.all {
		err = errors.Join(err, d.Close())
	}
	return err
}

// TryRead implements block.Direct.
func (m *multi) TryRead(b []byte, off int64) bool { return m.try(b, off, (*block.Device).TryRead) }

// TryWrite implements block.Direct.
func (m *multi) TryWrite(b []byte, off int64) bool { return m.try(b, off, (*block.Device).TryWrite) }

func (m *multi) try(b []byte, off int64, do func(*block.Device, []byte, int64) bool) bool {
	for k := m.at(off); len(b) > 0; k++ {
		p := &m.parts[k]
		n := min(int64(len(b)), p.end-off)
		if !do(p.dev, b[:n], off-p.start) {
			return false
		}
		b, off = b[n:], off+n
	}
	return true
}

// Range implements block.Direct. A span is in one part.
func (m *multi) Range(off, n int64, onlyData bool) (block.Span, bool) {
	p := &m.parts[m.at(off)]
	if n > p.end-off {
		return block.Span{}, false
	}
	return p.dev.Range(off-p.start, n, onlyData)
}

// Avoid implements block.Direct. A span does not tell which part it is from, but a
// part knows its own.
func (m *multi) Avoid(s block.Span) {
	for i := range m.parts {
		m.parts[i].dev.Avoid(s)
	}
}
