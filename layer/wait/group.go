package wait

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
)

// Group has the devices of a program that can be merged. The zero value is an
// empty group; nil is one that never has members. Two of its members never have one
// diff. Its methods may be called concurrently.
type Group struct {
	mu      sync.Mutex
	members []*Wait
	diffs   map[string]struct{} // paths of those that are open, also where the system has no locks
}

// errInUse says that a diff belongs to another device: two would destroy it. That
// it is EBUSY tells a server that reloads to close its own device first.
var errInUse = fmt.Errorf("%w: it is in use by another device; each needs a diff of its own", syscall.EBUSY)

// reserve takes the diff at path for one device, until release.
func (g *Group) reserve(path string) error {
	if g == nil || path == "" {
		return nil
	}
	path = filepath.Clean(path)
	g.mu.Lock()
	defer g.mu.Unlock()
	if _, taken := g.diffs[path]; taken {
		return errInUse
	}
	if g.diffs == nil {
		g.diffs = make(map[string]struct{})
	}
	g.diffs[path] = struct{}{}
	return nil
}

// release ends what reserve began.
func (g *Group) release(path string) {
	if g == nil || path == "" {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.diffs, filepath.Clean(path))
}

func (g *Group) add(w *Wait) {
	if g == nil {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.members = append(g.members, w)
}

func (g *Group) remove(w *Wait) {
	if g == nil {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.members = slices.DeleteFunc(g.members, func(m *Wait) bool { return m == w })
}

// list returns the members of this moment, in the order in which they came.
func (g *Group) list() []*Wait {
	if g == nil {
		return nil
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.members)
}

// Merge merges all members that have not merged yet, or, with names, those that
// have one of these, side by side, and returns when all have ended. Its error joins
// those of the ones that failed, each with the name of the device; those can be merged
// again by another call.
func (g *Group) Merge(ctx context.Context, names ...string) error {
	list := g.list()
	if len(names) > 0 {
		list = slices.DeleteFunc(list, func(w *Wait) bool { return !slices.Contains(names, w.config.Name) })
	}
	errs := make([]error, len(list))
	var all sync.WaitGroup
	for i, w := range list {
		all.Go(func() {
			if err := w.Merge(ctx); err != nil {
				errs[i] = fmt.Errorf("%s: %w", w.config.Name, err)
			}
		})
	}
	all.Wait()
	return errors.Join(errs...)
}

// Status tells how each member is.
func (g *Group) Status() []Status {
	var list []Status
	for _, w := range g.list() {
		list = append(list, w.Status())
	}
	return list
}

// Status says how a device is.
type Status struct {
	Name    string
	State   string // "collecting", "merging" or "merged"
	Waiting int64  // bytes that are in the diff
	// Interrupted says that a merge had begun when the diff was last in use, and has
	// not been begun again since: what Merge was called for has not been done.
	Interrupted bool
	// Err is why the last Merge failed, nil if it did not, or if there was none.
	Err error
}

// Status tells how the device is. What is being merged counts until it is done.
func (w *Wait) Status() Status {
	s := Status{
		Name: w.config.Name, State: [...]string{"collecting", "merging", "merged"}[w.now()],
		Waiting: w.marks.bytes(w.size), Interrupted: w.now() == collecting && w.diff.begun.Load(),
	}
	if p := w.failed.Load(); p != nil {
		s.Err = *p
	}
	return s
}
