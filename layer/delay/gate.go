package delay

import (
	"context"
	"fmt"
	"slices"
	"sync"
)

// Gate holds operations until they are let go. Its methods may be called
// concurrently; it may stand in several layers at once.
type Gate struct {
	match func(Op) bool

	mu      sync.Mutex
	open    bool
	held    []*Held       // all that wait, oldest first
	told    int           // how many of held, from the front, Arrived has returned
	changed chan struct{} // closed, and replaced, when an operation arrives
}

// NewGate returns a closed gate: it holds every operation that match accepts, and
// lets the others pass. A nil match accepts all. match may be called
// concurrently.
func NewGate(match func(Op) bool) *Gate {
	return &Gate{match: match, changed: make(chan struct{})}
}

// Held is an operation that waits at a gate. One of Release and Fail decides
// about it; what is called later has no effect.
type Held struct {
	Op      Op
	verdict chan error // takes the first verdict
}

// Release lets the operation go on.
func (h *Held) Release() { h.decide(nil) }

// Fail makes the operation fail with err, which must not be nil. The device
// below never hears of it.
func (h *Held) Fail(err error) { h.decide(err) }

func (h *Held) decide(err error) {
	select {
	case h.verdict <- err:
	default:
	}
}

// Arrived waits until an operation waits at the gate that no earlier call has
// returned, and returns it; or the error of ctx.
func (g *Gate) Arrived(ctx context.Context) (*Held, error) {
	for {
		g.mu.Lock()
		if g.told < len(g.held) {
			h := g.held[g.told]
			g.told++
			g.mu.Unlock()
			return h, nil
		}
		changed := g.changed
		g.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, fmt.Errorf("delay: no operation arrived: %w", ctx.Err())
		}
	}
}

// Waiting returns how many operations wait at the gate.
func (g *Gate) Waiting() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.held)
}

// Open lets go of all that wait, and lets all pass that come later, until Close.
func (g *Gate) Open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.open = true
	for _, h := range g.held {
		h.Release()
	}
}

// Close holds what comes from now on.
func (g *Gate) Close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.open = false
}

// pass waits at the gate.
func (g *Gate) pass(ctx context.Context, o Op) error {
	if g.match != nil && !g.match(o) {
		return nil
	}
	h := &Held{Op: o, verdict: make(chan error, 1)}
	if !g.enter(h) {
		return nil
	}
	defer g.leave(h)
	select {
	case err := <-h.verdict:
		return err
	case <-ctx.Done():
		return fmt.Errorf("delay: %v: %w", o, ctx.Err())
	}
}

// enter registers h, and reports false if the gate is open.
func (g *Gate) enter(h *Held) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.open {
		return false
	}
	g.held = append(g.held, h)
	close(g.changed)
	g.changed = make(chan struct{})
	return true
}

func (g *Gate) leave(h *Held) {
	g.mu.Lock()
	defer g.mu.Unlock()
	i := slices.Index(g.held, h)
	g.held = slices.Delete(g.held, i, i+1)
	if i < g.told {
		g.told--
	}
}
