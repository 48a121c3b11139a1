package server

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Report says what a reload did, by the names of the exports.
type Report struct {
	Added   []string
	Removed []string // those whose clients are still there live on until these have gone
	Kept    []string // nothing about them changed
	// Changed exports have their new settings in force, for new connections.
	Changed []string
	// Pending exports were changed while clients used their device. They refuse
	// new connections until the old ones have gone, and then open their device
	// anew. If that fails, they go on with their earlier settings.
	Pending []string
	// Healed exports had a device on which a flush had failed. It was opened
	// anew. They are among Changed or Pending, too. Of a private export, the devices that
	// have broken down are meant: new clients find them opened anew, when the earlier ones
	// have left.
	Healed []string
}

// Reload takes over cfg for new connections: exports, TLS, limits. Connections
// that are there go on as they began. It is all or nothing: if Reload returns an
// error, all is as before.
//
// Exports are compared by name. One with equal [Export.Settings] keeps its
// device. Devices that are new are opened first, while the old ones still serve. If
// one cannot be opened because it is in use, the idle devices that the new
// configuration no longer wants are closed, and it is tried again; if it fails
// still, they are opened again as they were, and should that fail, too, which
// only a change from outside can bring about, the export is out of order until
// the next reload, and the error says so. While a device is being replaced, new
// clients of its export wait.
//
// A shared device that was changed while connections use it cannot be replaced
// under them; see [Report.Pending]. Its new settings are tried as far as possible:
// the device is opened and closed again, where "in use" counts as a success. The
// devices of private exports belong to their connections; changed settings hold
// for the next one.
//
// Devices that stay are measured again; a file may have become larger.
//
// The logger stays what it was in [New].
func (s *Server) Reload(cfg Config) (Report, error) {
	s.reloading.Lock()
	defer s.reloading.Unlock()
	report, err := s.reload(cfg, nil)
	if err == nil {
		s.remeasureAll()
	}
	return report, err
}

// reload is Reload for those exports alone of which touches says so; the others
// must be as they are in the configuration in force. Nil touches all. The caller
// holds s.reloading.
func (s *Server) reload(cfg Config, touches func(name string) bool) (Report, error) {
	if err := cfg.check(); err != nil {
		return Report{}, err
	}
	if s.isClosing() {
		return Report{}, ErrClosed
	}
	next := &cfg
	if next.Transmission.Memory == nil {
		next.Transmission.Memory = s.memory
	}
	next.handshake = s.newHandshake(next)
	r := &reload{s: s, cfg: next, touches: touches}
	r.plan()
	defer r.finish()
	if err := r.open(); err != nil {
		return Report{}, errors.Join(err, r.undo())
	}
	return r.commit()
}

// kind is what a reload does to an export.
type kind int

const (
	opKeep   kind = iota // the device stays
	opAdd                // there was none of this name
	opSwap               // nobody uses the device: it is replaced now
	opWait               // somebody does: it is replaced later
	opRemove             // it is not configured any more
	opLeave              // nobody looks at it
)

// change is what a reload does to one export.
type change struct {
	kind   kind
	e      *export // nil if kind is opAdd
	cfg    *Export // nil if kind is opRemove
	opened *device // opened by this reload, not yet in the table
	held   bool    // e.moving is this reload's, and the device of e is closed
	broken bool    // a flush had failed on the device of e
}

func (c *change) name() string {
	if c.e != nil {
		return c.e.name
	}
	return c.cfg.Name
}

// opens tells whether what c describes is opened by the reload, if only to find out whether
// it can be.
func (c *change) opens() bool {
	switch c.kind {
	case opAdd, opSwap:
		return true
	case opKeep:
		return c.cfg.Private && c.e.cfg.Settings != c.cfg.Settings
	}
	return false
}

type reload struct {
	s       *Server
	cfg     *Config
	touches func(name string) bool // nil for all exports
	changes []*change
}

// plan compares the configuration with the table.
func (r *reload) plan() {
	s := r.s
	s.mu.Lock()
	defer s.mu.Unlock()
	s.awaitMoves()
	s.replacing = true
	wanted := make(map[string]bool)
	for _, x := range r.cfg.Exports {
		wanted[x.Name] = true
		if e := s.exports[x.Name]; e != nil && r.touches != nil && !r.touches(x.Name) {
			r.changes = append(r.changes, &change{kind: opLeave, e: e, cfg: x})
			continue
		}
		r.changes = append(r.changes, s.compare(x))
	}
	var gone []*change
	for _, e := range s.exports {
		if !wanted[e.name] && !e.removed {
			gone = append(gone, &change{kind: opRemove, e: e})
		}
	}
	slices.SortFunc(gone, func(a, b *change) int { return strings.Compare(a.e.name, b.e.name) })
	r.changes = append(r.changes, gone...)
}

// finish lets those exports move that became unused in the meantime.
func (r *reload) finish() {
	r.s.mu.Lock()
	defer r.s.mu.Unlock()
	r.s.replacing = false
	for _, e := range r.s.exports {
		r.s.settle(e)
	}
}

// awaitMoves waits until no device is being replaced by a move. The caller
// holds s.mu.
func (s *Server) awaitMoves() {
	for again := true; again; {
		again = false
		for _, e := range s.exports {
			if moved := e.moving; moved != nil {
				s.mu.Unlock()
				<-moved
				s.mu.Lock()
				again = true
				break
			}
		}
	}
}

// compare says what becomes of the export that x describes. The caller holds s.mu.
func (s *Server) compare(x *Export) *change {
	e := s.exports[x.Name]
	if e == nil {
		return &change{kind: opAdd, cfg: x}
	}
	c := &change{e: e, cfg: x, broken: e.broken()}
	switch {
	case e.fits(x), e.cfg.Private && x.Private:
		c.kind = opKeep
	case e.users > 0:
		c.kind = opWait
	default:
		c.kind = opSwap
	}
	return c
}

// open opens what is new, as far as it can be opened beside the old.
func (r *reload) open() error {
	var blocked, failed []error
	for _, c := range r.changes {
		var err error
		switch {
		case c.opens():
			c.opened, err = openShared(r.s.drain, c.cfg)
		case c.kind == opWait:
			if err = probe(r.s.drain, c.cfg); inUse(err) {
				err = nil // by the device that it is to replace, most likely
			}
		}
		if err == nil {
			continue
		}
		err = fmt.Errorf("export %s: %w", quote(c.cfg.Name), err)
		if inUse(err) {
			blocked = append(blocked, err)
		} else {
			failed = append(failed, err)
		}
	}
	if len(failed) > 0 || len(blocked) > 0 && !r.makeRoom() {
		return errors.Join(append(failed, blocked...)...)
	}
	if len(blocked) > 0 {
		return r.openAgain()
	}
	return nil
}

// probe tries whether x can be opened.
func probe(ctx context.Context, x *Export) error {
	d, err := openShared(ctx, x)
	if d == nil {
		return err
	}
	return closeGuarded(d.Device)
}

// makeRoom closes the idle devices that are not wanted any more. It reports
// whether there were any.
func (r *reload) makeRoom() bool {
	s := r.s
	any := false
	s.mu.Lock()
	for _, c := range r.changes {
		if c.kind != opSwap && c.kind != opRemove || c.e.dev == nil || c.e.moving != nil {
			continue
		}
		if c.e.users == 0 {
			c.e.moving = make(chan struct{})
			c.held, any = true, true
		} else if c.kind == opSwap && c.opened == nil {
			c.kind = opWait // a client has come in between
			any = true
		}
	}
	s.mu.Unlock()
	for _, c := range r.changes {
		if c.held {
			s.closeShared(c.e.name, c.e.dev)
		}
	}
	return any
}

// openAgain opens what could not be opened beside the old.
func (r *reload) openAgain() error {
	var errs []error
	for _, c := range r.changes {
		if !c.opens() || c.opened != nil {
			continue
		}
		var err error
		if c.opened, err = openShared(r.s.drain, c.cfg); err != nil {
			errs = append(errs, fmt.Errorf("export %s: %w", quote(c.cfg.Name), err))
		}
	}
	return errors.Join(errs...)
}

// undo puts everything back. It returns an error for an export that is worse
// off than before.
func (r *reload) undo() error {
	s := r.s
	for _, c := range r.changes {
		s.closeShared(c.name(), c.opened)
	}
	var errs []error
	for _, c := range r.changes {
		if !c.held {
			continue
		}
		dev, err := openShared(s.drain, c.e.cfg)
		if err != nil && s.drain.Err() == nil {
			errs = append(errs, fmt.Errorf("export %s is out of order, its device cannot be opened again: %w", quote(c.e.name), err))
		}
		s.mu.Lock()
		c.e.dev = dev
		s.moved(c.e)
		s.mu.Unlock()
	}
	return errors.Join(errs...)
}

// moved lets those go on who wait for e. The caller holds s.mu.
func (s *Server) moved(e *export) {
	close(e.moving)
	e.moving = nil
	s.stir()
}

// stir lets those look again who wait in awaitStir. The caller holds s.mu.
func (s *Server) stir() {
	close(s.stirred)
	s.stirred = make(chan struct{})
}

// commit replaces the table. Nothing can fail any more.
func (r *reload) commit() (Report, error) {
	var (
		s      = r.s
		report Report
		unused []*change // their opened devices are to be closed
		old    []*device
		names  []string // of old
	)
	s.mu.Lock()
	if s.closing {
		s.mu.Unlock()
		return Report{}, errors.Join(ErrClosed, r.undo())
	}
	s.cfg = r.cfg
	s.names = make(map[string]*export)
	s.order = s.order[:0:0]
	for _, c := range r.changes {
		if c.kind == opSwap && !c.held && c.e.users > 0 {
			c.kind = opWait // a client has come in between
			unused = append(unused, c)
		}
		if d := r.take(c, &report); d != nil {
			old, names = append(old, d), append(names, c.name())
		}
	}
	s.mu.Unlock()
	for i, d := range old {
		s.closeShared(names[i], d)
	}
	for _, c := range unused {
		s.closeShared(c.name(), c.opened)
	}
	return report, nil
}

// take puts one change into the table. It returns the device that has become
// superfluous. The caller holds s.mu.
func (r *reload) take(c *change, report *Report) (old *device) {
	s, e := r.s, c.e
	if c.kind == opRemove {
		report.Removed = append(report.Removed, e.name)
		e.removed, e.next = true, nil
		return r.drop(c)
	}
	if c.broken {
		e.spend()
		report.Healed = append(report.Healed, c.cfg.Name)
	}
	switch c.kind {
	case opAdd:
		e = &export{name: c.cfg.Name, cfg: c.cfg, dev: c.opened}
		s.exports[e.name] = e
		report.Added = append(report.Added, e.name)
	case opKeep:
		switch {
		case e.removed:
			report.Added = append(report.Added, e.name)
		case c.broken: // each of the devices belongs to some of its clients
			report.Pending = append(report.Pending, e.name)
		case e.cfg.samePolicy(c.cfg) && e.cfg.Settings == c.cfg.Settings:
			report.Kept = append(report.Kept, e.name)
		default:
			report.Changed = append(report.Changed, e.name)
		}
		e.cfg, e.next = c.cfg, nil
	case opSwap:
		report.Changed = append(report.Changed, e.name)
		if !c.held {
			old = e.dev
		}
		e.cfg, e.next, e.dev = c.cfg, nil, c.opened
	case opWait:
		report.Pending = append(report.Pending, e.name)
		e.next = c.cfg
	}
	e.removed = false
	if c.held {
		s.moved(e)
	}
	s.order = append(s.order, e)
	for _, n := range c.cfg.names() {
		s.names[n] = e
	}
	return old
}

// drop takes a removed export out of the table, or leaves it there until its
// clients have gone. The caller holds s.mu.
func (r *reload) drop(c *change) (old *device) {
	s, e := r.s, c.e
	if e.users > 0 {
		return nil
	}
	delete(s.exports, e.name)
	if !c.held {
		old = e.dev
	}
	e.dev = nil
	if c.held {
		s.moved(e)
	}
	return old
}
