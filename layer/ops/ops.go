// Package ops is what layers are made of that do something before or after operations, and
// otherwise leave them as they are: [delay] and [fault].
//
// # Concepts
//
// Every operation is described by an [Op] and given, as a [Call], to one function, an
// [Around]. That function may wait, refuse, do less, or do it and look at the result.
//
// The fast path ([block.Direct]) is not there, since it would lead past the function.
//
// [delay]: https://pkg.go.dev/nbd.example/nbd/layer/delay
// [fault]: https://pkg.go.dev/nbd.example/nbd/layer/fault
package ops

import (
	"context"
	"fmt"
	"slices"
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

var names = []string{"read", "write", "flush", "trim", "zero", "extents", "cache"}

// String returns the names of the kinds, like "read/write".
func (k Kind) String() string {
	if k == All {
		return "all"
	}
	var list []string
	for i, name := range names {
		if k&(1<<i) != 0 {
			list = append(list, name)
		}
	}
	return strings.Join(list, "/")
}

// ParseKind returns the kind of a name, one that String returns for a single kind or for all.
func ParseKind(name string) (Kind, error) {
	if name == "all" {
		return All, nil
	}
	if i := slices.Index(names, name); i >= 0 {
		return 1 << i, nil
	}
	return 0, fmt.Errorf("unknown kind of operation %.40q; known are %s, all", name, strings.Join(names, ", "))
}

// Op is one operation as the layer sees it.
type Op struct {
	Kind  Kind        // one kind
	Off   int64       // bytes; 0 for a flush
	Len   int64       // bytes; 0 for a flush
	Flags block.Flags // what the device below will be given
}

// String returns a text like "write of 512 bytes at 4096".
func (o Op) String() string {
	if o.Kind == Flush {
		return "flush"
	}
	return fmt.Sprintf("%v of %d bytes at %d", o.Kind, o.Len, o.Off)
}

// Call is one operation with what it needs to be done. It is a value, so that the way
// through a layer takes no memory.
type Call struct {
	Op
	next *block.Device
	p    []byte                  // of a read or a write
	add  func(block.Extent) bool // of extents
}

// Do does the first n bytes on the device below: Len for all of it, and whatever for a
// flush.
func (c Call) Do(ctx context.Context, n int64) error {
	switch c.Kind {
	case Read:
		return c.next.ReadAt(ctx, c.p[:n], c.Off)
	case Write:
		return c.next.WriteAt(ctx, c.p[:n], c.Off, c.Flags)
	case Flush:
		return c.next.Flush(ctx)
	case Trim:
		return c.next.Trim(ctx, c.Off, n, c.Flags)
	case Zero:
		return c.next.WriteZeroes(ctx, c.Off, n, c.Flags)
	case Extents:
		return c.next.Extents(ctx, c.Off, n, c.Flags, c.add)
	default:
		return c.next.Cache(ctx, c.Off, n)
	}
}

// Around is given each operation, concurrently. It may do it once, or not at all; what it
// returns is the result.
type Around func(ctx context.Context, c Call) error

// New returns a layer that gives every operation to around. It owns next.
func New(next *block.Device, around Around) block.Backend {
	return &layer{next: next, around: around}
}

type layer struct {
	next   *block.Device
	around Around
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

// ReadAt implements block.Backend.
func (l *layer) ReadAt(ctx context.Context, p []byte, off int64) error {
	return l.around(ctx, Call{Op{Kind: Read, Off: off, Len: int64(len(p))}, l.next, p, nil})
}

// WriteAt implements block.Writer.
func (l *layer) WriteAt(ctx context.Context, p []byte, off int64, f block.Flags) error {
	return l.around(ctx, Call{Op{Write, off, int64(len(p)), f}, l.next, p, nil})
}

// Flush implements block.Flusher.
func (l *layer) Flush(ctx context.Context) error {
	return l.around(ctx, Call{Op: Op{Kind: Flush}, next: l.next})
}

// Trim implements block.Trimmer.
func (l *layer) Trim(ctx context.Context, off, n int64, f block.Flags) error {
	return l.around(ctx, Call{Op: Op{Trim, off, n, f}, next: l.next})
}

// WriteZeroes implements block.ZeroWriter.
func (l *layer) WriteZeroes(ctx context.Context, off, n int64, f block.Flags) error {
	return l.around(ctx, Call{Op: Op{Zero, off, n, f}, next: l.next})
}

// Extents implements block.Extenter.
func (l *layer) Extents(ctx context.Context, off, n int64, f block.Flags, add func(block.Extent) bool) error {
	return l.around(ctx, Call{Op: Op{Extents, off, n, f}, next: l.next, add: add})
}

// Cache implements block.Cacher.
func (l *layer) Cache(ctx context.Context, off, n int64) error {
	return l.around(ctx, Call{Op: Op{Kind: Cache, Off: off, Len: n}, next: l.next})
}

// Remeasure implements block.Grower.
func (l *layer) Remeasure() (int64, error) { return l.next.Grow(1) }

// Close implements block.Backend.
func (l *layer) Close() error { return l.next.Close() }
