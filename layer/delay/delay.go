// Package delay is a layer that makes operations wait: for a time, as a slow
// disk would, or at a gate that a test opens.
//
// # Concepts
//
// Every operation that reaches the layer is described by an [Op]. It first waits
// as long as [Config] says for its kind, then passes the [Gate], if there is
// one, and is then done by the device below. A wait ends early, with the
// context's error, when the operation's context is done; then the device below
// never hears of the operation.
//
// A gate turns "some milliseconds later" into an event: a test waits until an
// operation has arrived, does what it wants to happen meanwhile, and lets the
// operation go on, or makes it fail. No test needs to sleep.
//
// The layer takes the fast path ([block.Direct]) away, because an answer that
// needs no waiting is what it is there to prevent.
package delay

import (
	"context"
	"fmt"
	"strings"
	"time"

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

// Config says how long operations wait. The zero value lets all of them pass at
// once.
type Config struct {
	// How long each kind waits, besides All.
	Read, Write, Flush, Trim, Zero, Extents, Cache time.Duration
	// All is how long every operation waits whose own kind has no time.
	All time.Duration
	// Func, if not nil, says how long an operation waits, instead of the times
	// above. It may be called concurrently.
	Func func(Op) time.Duration
	// Gate, if not nil, is passed after the wait.
	Gate *Gate
}

// wait returns how long o waits.
func (c *Config) wait(o Op) time.Duration {
	if c.Func != nil {
		return c.Func(o)
	}
	d := time.Duration(0)
	switch o.Kind {
	case Read:
		d = c.Read
	case Write:
		d = c.Write
	case Flush:
		d = c.Flush
	case Trim:
		d = c.Trim
	case Zero:
		d = c.Zero
	case Extents:
		d = c.Extents
	case Cache:
		d = c.Cache
	}
	if d == 0 {
		return c.All
	}
	return d
}

// Layer returns a layer that makes operations wait as c says.
func Layer(c Config) block.Layer {
	return func(next *block.Device) (block.Backend, error) {
		return &layer{next: next, config: c}, nil
	}
}

type layer struct {
	next   *block.Device
	config Config
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

// pass waits until o may be done, or returns why it may not.
func (l *layer) pass(ctx context.Context, o Op) error {
	if d := l.config.wait(o); d > 0 {
		t := time.NewTimer(d)
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
			return fmt.Errorf("delay: %v: %w", o, ctx.Err())
		}
	}
	if l.config.Gate == nil {
		return nil
	}
	return l.config.Gate.pass(ctx, o)
}

// ReadAt implements block.Backend.
func (l *layer) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := l.pass(ctx, Op{Kind: Read, Off: off, Len: int64(len(p))}); err != nil {
		return err
	}
	return l.next.ReadAt(ctx, p, off)
}

// WriteAt implements block.Writer.
func (l *layer) WriteAt(ctx context.Context, p []byte, off int64, f block.Flags) error {
	if err := l.pass(ctx, Op{Kind: Write, Off: off, Len: int64(len(p)), Flags: f}); err != nil {
		return err
	}
	return l.next.WriteAt(ctx, p, off, f)
}

// Flush implements block.Flusher.
func (l *layer) Flush(ctx context.Context) error {
	if err := l.pass(ctx, Op{Kind: Flush}); err != nil {
		return err
	}
	return l.next.Flush(ctx)
}

// Trim implements block.Trimmer.
func (l *layer) Trim(ctx context.Context, off, n int64, f block.Flags) error {
	if err := l.pass(ctx, Op{Kind: Trim, Off: off, Len: n, Flags: f}); err != nil {
		return err
	}
	return l.next.Trim(ctx, off, n, f)
}

// WriteZeroes implements block.ZeroWriter.
func (l *layer) WriteZeroes(ctx context.Context, off, n int64, f block.Flags) error {
	if err := l.pass(ctx, Op{Kind: Zero, Off: off, Len: n, Flags: f}); err != nil {
		return err
	}
	return l.next.WriteZeroes(ctx, off, n, f)
}

// Extents implements block.Extenter.
func (l *layer) Extents(ctx context.Context, off, n int64, f block.Flags, add func(block.Extent) bool) error {
	if err := l.pass(ctx, Op{Kind: Extents, Off: off, Len: n, Flags: f}); err != nil {
		return err
	}
	return l.next.Extents(ctx, off, n, f, add)
}

// Cache implements block.Cacher.
func (l *layer) Cache(ctx context.Context, off, n int64) error {
	if err := l.pass(ctx, Op{Kind: Cache, Off: off, Len: n}); err != nil {
		return err
	}
	return l.next.Cache(ctx, off, n)
}

// Remeasure implements block.Grower.
func (l *layer) Remeasure() (int64, error) { return l.next.Grow(1) }

// Close implements block.Backend.
func (l *layer) Close() error { return l.next.Close() }
