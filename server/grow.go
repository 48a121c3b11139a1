package server

import (
	"context"
	"errors"
)

// errTooLarge says that a device is to be opened anew.
var errTooLarge = errors.New("the device is larger than what is below it")

// remeasure looks at a device, which the caller keeps from being closed, and lets it
// grow: from then on clients are told the new size. Those that are there already may use
// it at once, and not only up to the size that they were told in the handshake: the
// kernel's client, for one, is made larger without a new connection.
//
// A device does not shrink under those who use it. Where what is below it has become
// smaller, what is missing cannot be read or written, and when nobody uses the device any
// more it is opened anew; see settle. remeasure reports whether it is so.
//
// A file system that does not answer keeps one of its callers, and the others until ctx
// is done.
func (s *Server) remeasure(ctx context.Context, x *Export, d *device) (tooLarge bool) {
	select {
	case d.measuring <- struct{}{}:
		defer func() { <-d.measuring }()
	case <-ctx.Done():
		return false
	}
	before := d.Size()
	var found int64
	err := guarded("measuring", func() (err error) { found, err = d.Grow(int64(x.MinBlock)); return err })
	if err != nil {
		s.log.Warn("cannot look whether an export has grown", "export", x.Name, "error", err)
		return false
	}
	size := d.Size()
	if size > before {
		s.log.Info("export has grown", "export", x.Name, "from", before, "to", size)
	}
	if missing := size - found; d.missing.Swap(missing) != missing && missing > 0 {
		s.log.Warn("an export has become smaller: it keeps its size while it has clients, and what is missing cannot be used",
			"export", x.Name, "size", size, "left", found)
	}
	return found < size
}

// remeasureAll looks at all devices that exports share. The caller holds s.reloading.
func (s *Server) remeasureAll() {
	for _, e := range s.hold() {
		// cfg and dev change only by a reload and by a move, and both are kept off.
		s.remeasure(s.drain, e.cfg, e.dev)
		s.mu.Lock()
		e.looking = false
		s.settle(e)
		s.mu.Unlock()
	}
}

// hold returns the exports with a device, and keeps these from being moved.
func (s *Server) hold() (list []*export) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.exports {
		if e.dev != nil && e.moving == nil {
			e.looking = true
			list = append(list, e)
		}
	}
	return list
}

// alone reports whether e has a single user.
func (s *Server) alone(e *export) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return e.users == 1
}
