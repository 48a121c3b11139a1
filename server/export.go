package server

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"

	"nbd.example/nbd/block"
	"nbd.example/nbd/handshake"
	"nbd.example/nbd/transmission"
)

// device is the open device of a shared export, with the group of connections
// that share it. A device that is opened anew has a new group.
type device struct {
	*block.Device
	group     *transmission.Group
	measuring chan struct{} // holds a value while somebody measures it
	missing   atomic.Int64  // bytes that are not there any more; see remeasure
}

func newDevice(d *block.Device) *device {
	return &device{Device: d, group: new(transmission.Group), measuring: make(chan struct{}, 1)}
}

// export is a row of the server's table. It outlives reloads, and its own
// removal while connections still hold it. Server.mu guards all but name.
type export struct {
	name string
	cfg  *Export // in force
	// next takes the place of cfg, and its device that of dev, when users is 0.
	// Until then nobody new is let in.
	next *Export
	// failed was next, and could not be opened.
	failed *Export
	dev    *device // nil if the export is private, or could not be opened again
	// users counts the connections that hold the export.
	users int
	// removed exports have no name any more; they wait for users to be 0.
	removed bool
	// looking keeps dev from being moved while a reload measures it.
	looking bool
	// evictions counts the calls of Evict, and how is that of the last one.
	evictions int
	how       How
	// instances are the open devices of a private export that has Share.
	instances map[string]*instance
	// failures counts the devices of the export on which a flush has failed.
	failures atomic.Int64
	// moving is not nil while somebody closes or opens dev without holding the
	// mutex, and is closed when that is done. Until then dev belongs to them alone.
	moving chan struct{}
}

// fits tells whether the device of e can serve as x.
func (e *export) fits(x *Export) bool {
	if e.cfg.Private != x.Private || e.cfg.Settings != x.Settings {
		return false
	}
	return x.Private || e.dev != nil && e.dev.Broken() == nil && x.suits(e.dev.Device) == nil
}

// lease is a connection's hold on an export.
type lease struct {
	e   *export
	cfg *Export // the policy that the connection began under
	dev *block.Device
	// common is the device that dev is of, or nil if dev is the connection's own.
	common *device
	shared *instance // that dev belongs to; nil if it belongs to none
	end    func()    // what Export.Begin has returned

	evictions int // of e, when the client was let in
}

// group returns the connections that share the device, or nil if there are no others.
func (l *lease) group() *transmission.Group {
	if l.common == nil {
		return nil
	}
	return l.common.group
}

// acquire lets a client in to the export that is called name, or says why not,
// in an error that the handshake package knows. The lease must be released.
func (s *Server) acquire(ctx context.Context, c Client, name string) (*lease, error) {
	for again := true; ; again = false {
		l, err := s.admit(ctx, c, name)
		if err != nil {
			return nil, err
		}
		err = s.begin(ctx, l, c, again)
		switch {
		case err == nil:
			return l, nil
		case errors.Is(err, errGone):
			s.log.Info("client gone before its export was ready", "client", addrText(c.Addr), "export", l.cfg.Name, "error", err)
			return nil, errGone
		case errors.Is(err, errSpent):
			return nil, s.refused(c, name, err.Error(), handshake.ErrPolicy)
		case err != errTooLarge:
			s.log.Error("cannot open an export for a client", "client", addrText(c.Addr), "export", l.cfg.Name, "error", err)
			return nil, fmt.Errorf("the export %s cannot be opened; the server's log says why", quote(name))
		}
	}
}

// begin makes the device ready for a client that was admitted. If it fails, the client
// has left. With renew, and if nobody else uses the device, it fails with errTooLarge
// where it is: then the device is about to be opened anew.
func (s *Server) begin(ctx context.Context, l *lease, c Client, renew bool) error {
	ready := false
	defer func() { // also when something panics
		if !ready {
			s.leave(l.e)
		}
	}()
	if l.common != nil && s.remeasure(ctx, l.cfg, l.common) && renew && s.alone(l.e) {
		return errTooLarge
	}
	if err := s.prepare(ctx, l, c); err != nil {
		return err
	}
	ready = true
	return nil
}

// admit checks the barriers of an export and counts the client in.
func (s *Server) admit(ctx context.Context, c Client, name string) (*lease, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var asked *Export // whose rules were asked
	allowed := false
	for {
		e := s.names[name]
		switch {
		case s.closing:
			return nil, fmt.Errorf("%w", handshake.ErrShutdown)
		case e == nil:
			return nil, s.refused(c, name, "there is no such export", handshake.ErrUnknown)
		case e.cfg != asked:
			asked = e.cfg
			s.unlocked(func() { allowed = asked.allows(c.Addr) })
			continue
		case !allowed:
			return nil, s.refused(c, name, "the address is not allowed", handshake.ErrUnknown)
		case e.cfg.RequireTLS && c.TLS == nil:
			return nil, s.refused(c, name, "the export demands TLS", handshake.ErrTLSRequired)
		case e.moving == nil:
			return s.take(e, c, name)
		}
		// The device is being replaced while nobody uses it: that is soon done.
		moved := e.moving
		s.mu.Unlock()
		select {
		case <-moved:
		case <-ctx.Done():
		case <-s.drain.Done():
		}
		s.mu.Lock()
		if ctx.Err() != nil && !s.closing {
			return nil, ctx.Err()
		}
	}
}

// unlocked calls f without s.mu, which the caller holds.
func (s *Server) unlocked(f func()) {
	s.mu.Unlock()
	defer s.mu.Lock()
	f()
}

// take counts a client in. The caller holds s.mu.
func (s *Server) take(e *export, c Client, name string) (*lease, error) {
	switch {
	case e.next != nil:
		return nil, s.refused(c, name, "the export is being changed, and waits for its earlier clients to leave", handshake.ErrPolicy)
	case e.dev == nil && !e.cfg.Private:
		return nil, s.refused(c, name, "the export is out of order", errOutOfOrder)
	case e.cfg.MaxConnections > 0 && e.users >= e.cfg.MaxConnections:
		return nil, s.refused(c, name, fmt.Sprintf("the export has all its %d connections", e.cfg.MaxConnections), handshake.ErrPolicy)
	}
	e.users++
	l := &lease{e: e, cfg: e.cfg, evictions: e.evictions}
	if e.dev != nil {
		l.dev, l.common = e.dev.Device, e.dev
	}
	return l, nil
}

// refused logs why a client was kept out, and returns what the client is told.
// An address that is not allowed must look like an export that is not there.
func (s *Server) refused(c Client, name, why string, kind error) error {
	s.log.Info("client refused", "client", addrText(c.Addr), "export", clip(name), "why", why)
	if kind == handshake.ErrUnknown {
		return fmt.Errorf("%w: %s", kind, quote(name))
	}
	return fmt.Errorf("%w: %s", kind, why)
}

// release ends a connection's hold. Nothing may use l.dev any more.
func (s *Server) release(l *lease) {
	s.finish(l)
	s.leave(l.e)
}

func (s *Server) leave(e *export) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e.users--
	s.settle(e)
}

// settle begins what waits for e to be unused, if it is. A reload that is under
// way has made its plan by what it saw, and settles all when it is done. The
// caller holds s.mu.
func (s *Server) settle(e *export) {
	if s.replacing || s.closing || e.users > 0 || e.looking || e.moving != nil {
		return
	}
	next := e.next
	switch {
	case next != nil || e.removed:
	case e.dev != nil && e.dev.missing.Load() > 0:
		next = e.cfg
	default:
		return
	}
	e.moving = make(chan struct{})
	s.background.Add(1)
	go s.move(e, next)
}

// move closes the device of e and, if next is not nil, opens that of next. If
// this fails, the export goes on with what it had.
func (s *Server) move(e *export, next *Export) {
	defer s.background.Done()
	s.closeShared(e.name, e.dev)
	cfg, dev := e.cfg, (*device)(nil)
	if next != nil {
		var err error
		if dev, err = openShared(s.drain, next); err == nil {
			cfg = next
			s.log.Info("export opened anew", "export", e.name)
		} else {
			s.log.Error("cannot open an export with its changed settings, trying the earlier ones", "export", e.name, "error", err)
			dev = s.reopen(e)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if cfg != next {
		e.failed = next
	}
	e.cfg, e.dev, e.next = cfg, dev, nil
	if e.removed && s.exports[e.name] == e {
		delete(s.exports, e.name)
	}
	s.moved(e)
}

// reopen opens the device that e had, or logs why it has none any more. The
// caller has set e.moving.
func (s *Server) reopen(e *export) *device {
	if e.cfg.Private {
		return nil
	}
	dev, err := openShared(s.drain, e.cfg)
	if err != nil {
		s.log.Error("cannot open an export again, it is out of order until the next reload", "export", e.name, "error", err)
	}
	return dev
}

// openShared opens the device that all connections of x share; none if each is
// to have its own, of which it may find out whether it can be opened.
func openShared(ctx context.Context, x *Export) (*device, error) {
	if x.Private && !x.Probe {
		return nil, nil
	}
	d, err := x.open(ctx, Client{})
	switch {
	case err != nil:
		return nil, err
	case x.Private:
		return nil, closeGuarded(d)
	}
	return newDevice(d), nil
}

// open calls x.Open, and makes an error of whatever may go wrong there.
func (x *Export) open(ctx context.Context, c Client) (d *block.Device, err error) {
	if err = guarded("opening", func() (err error) { d, err = x.Open(ctx, c); return err }); err != nil {
		return nil, err
	}
	if err := x.suits(d); err != nil {
		return nil, joinClose(err, d)
	}
	return d, nil
}

// lostWrites returns what says, and counts, that a device of an export has broken down. It
// outlives the connection that it was made for.
func (s *Server) lostWrites(e *export) func(error) {
	return func(err error) {
		s.log.Error("a flush failed, written data may be lost: the export can only be read until the server is reloaded or restarted",
			"export", e.name, "failures", e.failures.Add(1), "error", err)
	}
}

func (s *Server) closeShared(name string, d *device) {
	if d != nil {
		s.closeDevice(name, d.Device)
	}
}

func (s *Server) closeDevice(name string, d *block.Device) {
	if err := closeGuarded(d); err != nil {
		s.log.Error("closing a device failed", "export", name, "error", err)
	}
}
