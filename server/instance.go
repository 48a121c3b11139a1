package server

import (
	"context"
	"errors"
	"time"
)

// instance is a device of a private export that some of its connections share;
// see [Export.Share].
type instance struct {
	key   string
	users int           // connections that hold it, or wait for it; guarded by Server.mu
	ready chan struct{} // closed when dev or err is set
	dev   *device
	err   error
	gone  chan struct{} // not nil while it is being closed, and closed when that is done; guarded by Server.mu
	// spent says that the device has broken down, and is to be opened anew: nobody is let in
	// until those who have it have left. Guarded by Server.mu.
	spent bool
}

// errSpent refuses a client whose instance is spent.
var errSpent = errors.New("the export is to be opened anew, and waits for its earlier clients to leave")

// broken tells whether a flush has failed on the device.
func (in *instance) broken() bool {
	select {
	case <-in.ready:
		return in.dev != nil && in.dev.Broken() != nil
	default:
		return false // it is being opened
	}
}

// broken tells whether a flush has failed on a device that connections of e share. The
// caller holds Server.mu.
func (e *export) broken() bool {
	for _, in := range e.instances {
		if in.broken() {
			return true
		}
	}
	return e.dev != nil && e.dev.Broken() != nil
}

// spend has the broken instances of e opened anew, as soon as their users have left. The
// caller holds Server.mu.
func (e *export) spend() {
	for _, in := range e.instances {
		in.spent = in.spent || in.broken()
	}
}

// awaits tells whether an instance of e waits for its users to leave. The caller holds
// Server.mu.
func (e *export) awaits() bool {
	for _, in := range e.instances {
		if in.spent {
			return true
		}
	}
	return false
}

// prepare does for a client that was admitted what its export does for each
// connection: it calls Begin, and opens the device if that is not open already.
// If it fails, nothing is left of it.
func (s *Server) prepare(ctx context.Context, l *lease, c Client) (err error) {
	if l.cfg.Begin == nil && !l.cfg.Private {
		return nil
	}
	if s.spent(l, c) { // no command is run for a client that is not let in
		return errSpent
	}
	// What the export takes its time for is not the client's fault.
	defer s.pauseHandshake(ctx)()
	ok := false
	defer func() { // also when something panics
		if !ok {
			s.finish(l)
		}
	}()
	if l.cfg.Begin != nil {
		there, stop := whileThere(ctx)
		l.end, err = l.cfg.begin(there, c)
		stop()
		if err != nil {
			return err
		}
	}
	switch {
	case !l.cfg.Private:
	case l.cfg.Share != nil:
		if err = s.join(ctx, l, c); err == nil {
			s.remeasure(ctx, l.cfg, l.common) // it may be open for long
		}
	default:
		l.dev, err = l.cfg.open(ctx, c)
	}
	ok = err == nil
	return err
}

// finish is the reverse of prepare. Nothing may use the device any more.
func (s *Server) finish(l *lease) {
	switch {
	case l.shared != nil:
		s.part(l.e, l.shared)
	case l.cfg.Private && l.dev != nil:
		s.closeDevice(l.cfg.Name, l.dev)
	}
	if l.end != nil {
		if err := guarded("finishing", func() error { l.end(); return nil }); err != nil {
			s.log.Error("what follows a connection failed", "export", l.cfg.Name, "error", err)
		}
	}
}

// begin calls x.Begin, and makes an error of whatever may go wrong there.
func (x *Export) begin(ctx context.Context, c Client) (end func(), err error) {
	err = guarded("preparing", func() (err error) { end, err = x.Begin(ctx, c); return err })
	return end, err
}

// key names the instance that a client is to have.
func (l *lease) key(c Client) string { return l.cfg.Settings + "\x00" + l.cfg.Share(c) }

// spent tells whether a client would get an instance that is spent.
func (s *Server) spent(l *lease, c Client) bool {
	if !l.cfg.Private || l.cfg.Share == nil {
		return false
	}
	key := l.key(c)
	s.mu.Lock()
	defer s.mu.Unlock()
	in := l.e.instances[key]
	return in != nil && in.spent && in.gone == nil
}

// join gives a connection the device that others with the same key have, or
// opens it.
func (s *Server) join(ctx context.Context, l *lease, c Client) error {
	key := l.key(c)
	for {
		in, first, gone := s.instance(l.e, key)
		switch {
		case in == nil && gone == nil:
			return errSpent
		case gone != nil:
			select {
			case <-gone:
				continue
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		l.shared = in
		if first {
			s.openInstance(ctx, l, c)
		}
		select {
		case <-in.ready:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
		if in.err != nil {
			return in.err
		}
		l.dev, l.common = in.dev.Device, in.dev
		return nil
	}
}

// instance counts a user in. The first one must open the device. If the device
// is just being closed, it returns what to wait for; if it is spent, nothing.
func (s *Server) instance(e *export, key string) (in *instance, first bool, gone <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	in = e.instances[key]
	switch {
	case in == nil:
		in = &instance{key: key, ready: make(chan struct{})}
		if e.instances == nil {
			e.instances = make(map[string]*instance)
		}
		e.instances[key], first = in, true
	case in.gone != nil:
		return nil, false, in.gone
	case in.spent:
		return nil, false, nil
	}
	in.users++
	return in, first, nil
}

// openInstance opens the device of l.shared for all that wait for it. Those
// others must not suffer if this client goes, so it is not bound by ctx.
func (s *Server) openInstance(ctx context.Context, l *lease, c Client) {
	in := l.shared
	in.err = errors.New("opening the device did not end")
	defer func() {
		if in.err != nil {
			// Whoever comes next tries again.
			s.mu.Lock()
			if l.e.instances[in.key] == in {
				delete(l.e.instances, in.key)
			}
			s.mu.Unlock()
		}
		close(in.ready)
	}()
	d, err := l.cfg.open(context.WithoutCancel(ctx), c)
	if in.err = err; err == nil {
		in.dev = newDevice(d)
	}
}

// part counts a user out. The last one closes the device.
func (s *Server) part(e *export, in *instance) {
	s.mu.Lock()
	in.users--
	last := in.users == 0 && e.instances[in.key] == in
	if last {
		in.gone = make(chan struct{})
	}
	s.mu.Unlock()
	if !last {
		return
	}
	<-in.ready
	s.closeShared(e.name, in.dev)
	s.mu.Lock()
	delete(e.instances, in.key)
	if in.spent {
		s.stir()
	}
	s.mu.Unlock()
	close(in.gone)
}

// connKey finds the connection that a context belongs to.
type connKey struct{}

// pauseHandshake stops the clock of the handshake that ctx belongs to, and
// returns what starts it again.
func (s *Server) pauseHandshake(ctx context.Context) (resume func()) {
	c, _ := ctx.Value(connKey{}).(*conn)
	if c == nil {
		return func() {}
	}
	from := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	c.paused = true
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		c.paused = false
		c.credit += time.Since(from)
	}
}
