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
	"time"

	"nbd.example/nbd/block"
	"nbd.example/nbd/layer/ops"
)

// Kind is a set of kinds of operations.
type Kind = ops.Kind

// Op is one operation as the layer sees it.
type Op = ops.Op

// Kinds.
const (
	Read    = ops.Read
	Write   = ops.Write
	Flush   = ops.Flush
	Trim    = ops.Trim
	Zero    = ops.Zero
	Extents = ops.Extents
	Cache   = ops.Cache
	All     = ops.All
)

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
		return ops.New(next, func(ctx context.Context, o ops.Call) error {
			if err := c.pass(ctx, o.Op); err != nil {
				return err
			}
			return o.Do(ctx, o.Len)
		}), nil
	}
}

// pass waits until o may be done, or returns why it may not.
func (c *Config) pass(ctx context.Context, o Op) error {
	if d := c.wait(o); d > 0 {
		t := time.NewTimer(d)
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
			return fmt.Errorf("delay: %v: %w", o, ctx.Err())
		}
	}
	if c.Gate == nil {
		return nil
	}
	return c.Gate.pass(ctx, o)
}
