// Package fault is a layer that makes operations fail on purpose, by rules.
//
// # Concepts
//
// A [Script] is a list of rules. Each [Rule] says which operations it means (their
// kinds and the range they touch), when (always, only the third time, one time
// in ten), and what then happens: an error, after the operation has been
// done in part or not at all, or a panic. The first rule that fires decides; an
// operation that no rule fires for is done by the device below. A Script can be
// changed while its layers are in use.
//
// Rules have a text form:
//
//	read@4096+512=EIO        a bad sector: reading any byte of it fails
//	write:3=ENOSPC           the third write fails
//	write:3+=ENOSPC          the third and all later ones
//	flush:once=EIO           the first flush; "flush=EIO:once" means the same
//	read/write:10%=EIO       about one in ten
//	write:2=EIO/512          the second write is torn: 512 bytes are written
//	read:5=panic             the fifth read panics
//
// In full, with spaces allowed around each rule:
//
//	rules     = rule { ( ";" | "," | newline ) rule }
//	rule      = kinds [ range ] { ":" when } "=" effect { ":" when }
//	kinds     = kind { "/" kind }
//	kind      = "read" | "write" | "flush" | "trim" | "zero" | "extents" | "cache" | "all"
//	range     = "@" offset [ "+" length ]                    bytes; without a length: to the end
//	when      = "once" | number | number "+" | number "-" number | percentage "%"
//	effect    = error [ "/" bytes ] | "panic"
//	error     = name | number                                EIO, or 5
//
// Each rule counts the operations of its kinds that touch its range; "once" is 1,
// numbers are compared with that count, which starts at 1. A flush touches
// every range. Errors have the names and the numbers that they have on Linux,
// on every system.
package fault

import (
	"context"
	"fmt"
	"strings"

	"nbd.example/nbd/block"
)

// Kind is a set of kinds of operations.
type Kind uint8

// Kinds.
const (
	Read Kind = 1 << iota
	Write
	Flush
	Trim
	Zero
	Extents
	Cache

	All = Read | Write | Flush | Trim | Zero | Extents | Cache
)

var kindNames = []string{"read", "write", "flush", "trim", "zero", "extents", "cache"}

// String returns the names of the kinds, like "read/write".
func (k Kind) String() string {
	if k == All {
		return "all"
	}
	var names []string
	for i, name := range kindNames {
		if k&(1<<i) != 0 {
			names = append(names, name)
		}
	}
	return strings.Join(names, "/")
}

// Error is the error of an operation that a rule made fail. Err is found by
// errors.Is; a [block.OffsetError] around it tells the place, unless the operation
// was a flush.
type Error struct {
	Kind     Kind
	Off, Len int64 // bytes, of the operation
	Rule     string
	Err      error
}

func (e *Error) Error() string {
	if e.Kind == Flush {
		return fmt.Sprintf("fault: flush: rule %q: %v", e.Rule, e.Err)
	}
	return fmt.Sprintf("fault: %v of %d bytes at %d: rule %q: %v", e.Kind, e.Len, e.Off, e.Rule, e.Err)
}

// Unwrap returns Err.
func (e *Error) Unwrap() error { return e.Err }

// Layer returns a layer that follows s, which stays the caller's to change, and
// may be shared by several layers. A nil s lets everything pass.
func Layer(s *Script) block.Layer {
	return func(next *block.Device) (block.Backend, error) {
		if s == nil {
			s = &Script{}
		}
		return &layer{next: next, script: s}, nil
	}
}

type layer struct {
	next   *block.Device
	script *Script
}

var (
	_ block.Backend    = (*layer)(nil)
	_ block.Writer     = (*layer)(nil)
	_ block.Flusher    = (*layer)(nil)
	_ block.Trimmer    = (*layer)(nil)
	_ block.ZeroWriter = (*layer)(nil)
	_ block.Extenter   = (*layer)(nil)
	_ block.Cacher     = (*layer)(nil)
	_ block.Grower     = (*layer)(nil)
)

// Caps implements block.Backend. There is no smallest or largest unit, so that
// the layer sees operations as they were asked for; the device below cuts and
// rounds them. What that device only emulates is emulated above the layer, which
// then sees the reads, writes and flushes that it is made of.
func (l *layer) Caps() block.Caps {
	c := l.next.Caps()
	c.BlockSize = block.BlockSize{Preferred: c.BlockSize.Preferred}
	return c
}

// around does an operation unless a rule fires for it. do is called with the
// number of bytes to do: n, or less for a torn one.
func (l *layer) around(k Kind, off, n int64, do func(n int64) error) error {
	r, fired := l.script.fire(k, off, n)
	if !fired {
		return do(n)
	}
	if r.Panic {
		panic(fmt.Sprintf("fault: %v of %d bytes at %d: rule %q", k, n, off, r))
	}
	if part := min(r.Part, n); part > 0 && k != Flush {
		if err := do(part); err != nil {
			return err
		}
	}
	err := error(&Error{Kind: k, Off: off, Len: n, Rule: r.String(), Err: r.Err})
	if k != Flush {
		// The first byte that failed: a part that was done did not.
		at := max(off, r.Off, off+min(r.Part, n-1))
		err = &block.OffsetError{Off: at, Err: err}
	}
	return err
}

// ReadAt implements block.Backend.
func (l *layer) ReadAt(ctx context.Context, p []byte, off int64) error {
	return l.around(Read, off, int64(len(p)), func(n int64) error {
		return l.next.ReadAt(ctx, p[:n], off)
	})
}

// WriteAt implements block.Writer.
func (l *layer) WriteAt(ctx context.Context, p []byte, off int64, f block.Flags) error {
	return l.around(Write, off, int64(len(p)), func(n int64) error {
		return l.next.WriteAt(ctx, p[:n], off, f)
	})
}

// Flush implements block.Flusher.
func (l *layer) Flush(ctx context.Context) error {
	return l.around(Flush, 0, 0, func(int64) error { return l.next.Flush(ctx) })
}

// Trim implements block.Trimmer.
func (l *layer) Trim(ctx context.Context, off, n int64, f block.Flags) error {
	return l.around(Trim, off, n, func(n int64) error { return l.next.Trim(ctx, off, n, f) })
}

// WriteZeroes implements block.ZeroWriter.
func (l *layer) WriteZeroes(ctx context.Context, off, n int64, f block.Flags) error {
	return l.around(Zero, off, n, func(n int64) error { return l.next.WriteZeroes(ctx, off, n, f) })
}

// Extents implements block.Extenter.
func (l *layer) Extents(ctx context.Context, off, n int64, f block.Flags, add func(block.Extent) bool) error {
	return l.around(Extents, off, n, func(n int64) error { return l.next.Extents(ctx, off, n, f, add) })
}

// Cache implements block.Cacher.
func (l *layer) Cache(ctx context.Context, off, n int64) error {
	return l.around(Cache, off, n, func(n int64) error { return l.next.Cache(ctx, off, n) })
}

// Remeasure implements block.Grower.
func (l *layer) Remeasure() (int64, error) { return l.next.Grow(1) }

// Close implements block.Backend.
func (l *layer) Close() error { return l.next.Close() }
