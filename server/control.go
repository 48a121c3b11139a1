package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync/atomic"
	"syscall"
	"time"

	"nbd.example/nbd/handshake"
	"nbd.example/nbd/transmission"
)

// Errors of the methods that control a running server.
var (
	// ErrNoConnection is returned for a connection that is not there, or not any more.
	ErrNoConnection = errors.New("there is no such connection")
	// ErrNoExport is returned for an export that is not there.
	ErrNoExport = errors.New("there is no such export")
	// ErrExportExists is returned for adding an export whose name is taken.
	ErrExportExists = errors.New("there is an export of that name already")
	// ErrNotChanged is returned when a changed export could not be opened at last.
	ErrNotChanged = errors.New("it could not be opened with its changed settings, and goes on as it was; the server's log says why")

	// ErrSuperseded is returned for a change that another one replaced before it was in
	// force.
	ErrSuperseded = errors.New("another change took its place while it waited for the clients to leave")

	errDismissed = errors.New("the connection was closed on request")
)

// How says how connections are ended.
type How int

// How connections are ended.
const (
	// Drain lets each answer what it has read, and close. A client that comes back,
	// and asks again what was not answered, loses nothing.
	Drain How = iota
	// Cut closes them at once. What was asked and not answered, the client asks
	// again, or takes for lost.
	Cut
)

// Connection describes a connection at one moment.
type Connection struct {
	ID     uint64 // never used again
	Client string // where it comes from
	// Export is the export's own name. It is meaningless while Handshake is true.
	Export    string
	Handshake bool
	// Closing says that it serves nothing new any more: it was asked to end, or has ended and
	// waits a moment for the client to close, too.
	Closing bool
	Since   time.Time
	TLS     string // the version; "" without TLS
	TLSPeer string // the name in the client's certificate; "" if it has none
	Replies string // simple, structured or extended
	// Stats counts what has been done. It is behind by what the connection is at.
	Stats    transmission.Stats
	InFlight int // requests that are not answered
	// Process is the client's, on a unix socket and where the system tells; else nil.
	Process *Process
}

// Process is who has connected to a unix socket, as it was then.
type Process struct {
	PID      int // 0 if it is in another namespace
	UID, GID uint32
}

// ExportStatus describes an export at one moment.
type ExportStatus struct {
	Export  *Export // in force; must not be changed
	State   string  // serving, or why not: see [Server.Exports]
	Clients int     // connections
	// Failures counts the failed flushes, and writes that should have been stable, since
	// the export was added. A device on which one has failed counts once: it is not written
	// any more until it is opened anew.
	Failures int64
	Size     int64 // bytes; -1 where each connection has a device of its own, or there is none
}

// about is what a connection has agreed on.
type about struct {
	export, tls, tlsPeer, replies string
}

// control is the part of a connection that others see and touch.
type control struct {
	id    uint64
	live  transmission.Live
	about atomic.Pointer[about] // nil in the handshake
	asked atomic.Bool           // somebody has asked for it to be closed
	ended atomic.Bool           // it serves nothing any more
}

// agreed notes the result of the handshake.
func (c *conn) agreed(r *handshake.Result, l *lease) {
	a := &about{export: l.cfg.Name, replies: replyStyle(r)}
	if r.Peer.TLS != nil {
		a.tls, a.tlsPeer = tls.VersionName(r.Peer.TLS.Version), tlsPeer(r.Peer.TLS)
	}
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	c.about.Store(a)
	if l.e.evictions != l.evictions { // while the handshake was ending
		c.dismiss(l.e.how)
	}
}

// dismissed says of a connection that ended because it was asked to that it did.
func (c *control) dismissed(err error) error {
	switch {
	case !c.asked.Load():
	case errors.Is(err, transmission.ErrCut):
		return fmt.Errorf("%w: %w", errDismissed, err)
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, transmission.ErrHungUp):
		return errDismissed
	}
	return err
}

// dismiss ends a connection.
func (c *conn) dismiss(how How) {
	c.asked.Store(true)
	if how == Cut || c.about.Load() == nil {
		c.cut()
		return
	}
	// As at the end of the server: the engine reads no more, and answers the rest.
	c.nc.SetReadDeadline(time.Unix(1, 0))
}

// cut ends a connection at once. In the transmission phase it is not closed: what it
// has begun must end before others may change the same, and the engine sees to that;
// the client sees at once that there is no more to come.
func (c *conn) cut() {
	if c.about.Load() == nil {
		c.nc.Close()
		return
	}
	c.live.Cut()
	if _, socket := c.nc.(syscall.Conn); socket {
		closeWrite(c.nc)
	} else {
		c.nc.Close()
	}
}

// describe returns what c is at this moment.
func (c *conn) describe() Connection {
	x := Connection{
		ID: c.id, Client: c.who(), Since: c.started, Handshake: true, Closing: c.asked.Load() || c.ended.Load(),
		Stats: c.live.Stats(), InFlight: c.live.InFlight(), Process: peerProcess(c.nc),
	}
	if a := c.about.Load(); a != nil {
		x.Handshake = false
		x.Export, x.TLS, x.TLSPeer, x.Replies = a.export, a.tls, a.tlsPeer, a.replies
	}
	return x
}

// Connections describes all connections, the oldest first.
func (s *Server) Connections() []Connection {
	s.mu.Lock()
	conns := make([]*conn, 0, len(s.conns))
	for c := range s.conns {
		conns = append(conns, c)
	}
	s.mu.Unlock()
	slices.SortFunc(conns, func(a, b *conn) int {
		if a.id < b.id {
			return -1
		}
		return 1
	})
	list := make([]Connection, len(conns))
	for i, c := range conns {
		list[i] = c.describe()
	}
	return list
}

// CloseConnection ends the connection with that ID, and does not wait for its
// end. One in the handshake is closed at once.
func (s *Server) CloseConnection(id uint64, how How) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		if c.id == id {
			c.dismiss(how)
			return nil
		}
	}
	return fmt.Errorf("%w: %d", ErrNoConnection, id)
}

// Evict ends the connections of an export, and, if it was changed or removed and
// waits for them, waits until the change is in force, or ctx is done. A change that
// cannot be made is an [ErrNotChanged]; the export then goes on as it was. One that
// another change replaces meanwhile is an [ErrSuperseded].
func (s *Server) Evict(ctx context.Context, name string, how How) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var change *Export
	if e := s.exports[name]; e != nil {
		e.evictions++
		e.how, change = how, e.next
	}
	for c := range s.conns {
		if a := c.about.Load(); a != nil && a.export == name {
			c.dismiss(how)
		}
	}
	for {
		switch e := s.exports[name]; {
		case change != nil && e != nil && e.failed == change:
			return fmt.Errorf("export %s: %w", quote(name), ErrNotChanged)
		case change != nil && (e == nil || e.next != change && e.cfg != change):
			return fmt.Errorf("export %s: %w", quote(name), ErrSuperseded)
		case e == nil || change != nil && e.cfg == change:
			return nil
		case e.moving == nil && e.next == nil && !e.removed && !e.awaits():
			return nil
		}
		if err := s.awaitStir(ctx); err != nil {
			return fmt.Errorf("the export %s still has clients: %w", quote(name), err)
		}
	}
}

// awaitStir waits until the device of some export has moved. The caller holds
// s.mu, which is given up meanwhile.
func (s *Server) awaitStir(ctx context.Context) error {
	stirred := s.stirred
	s.mu.Unlock()
	defer s.mu.Lock()
	select {
	case <-stirred:
		return nil
	case <-s.drain.Done():
		return ErrClosed
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Exports describes all exports, in the order of the configuration, then those
// that were removed and still have clients. The states:
//
//   - serving;
//   - broken: a flush has failed, and the export can only be read until it is
//     opened anew, by a reload or by [Server.ChangeExport]; of a private export,
//     a device that clients share, not one that a connection has for itself;
//   - pending: it was changed, or is to be opened anew, and waits for its earlier
//     clients to leave;
//   - removed: it serves the clients that it has, and nobody else;
//   - moving: its device is being replaced;
//   - out of order: its device could not be opened again.
func (s *Server) Exports() []ExportStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []ExportStatus
	for _, e := range s.order {
		list = append(list, e.status())
	}
	shown := len(list)
	for _, e := range s.exports {
		if e.removed {
			list = append(list, e.status())
		}
	}
	slices.SortFunc(list[shown:], func(a, b ExportStatus) int {
		if a.Export.Name < b.Export.Name {
			return -1
		}
		return 1
	})
	return list
}

// status describes e. The caller holds Server.mu.
func (e *export) status() ExportStatus {
	x := ExportStatus{Export: e.cfg, State: "serving", Clients: e.users, Failures: e.failures.Load(), Size: -1}
	switch {
	case e.removed:
		x.State = "removed"
	case e.moving != nil: // the device is somebody else's
		x.State = "moving"
		return x
	case e.next != nil || e.awaits():
		x.State = "pending"
	case e.dev == nil && !e.cfg.Private:
		x.State = "out of order"
	case e.broken():
		x.State = "broken"
	}
	if e.dev != nil && e.moving == nil {
		x.Size = e.dev.Size()
	}
	return x
}

// AddExport serves one more export. The others go on undisturbed. A later Reload
// keeps it only if it is in the new configuration. It is Pending, and not Added, if one of
// that name was removed a moment ago, and still has clients.
func (s *Server) AddExport(x *Export) (Report, error) {
	return s.edit(x.Name, func(list []*Export, at int) ([]*Export, error) {
		if at >= 0 {
			return nil, fmt.Errorf("%w: %s", ErrExportExists, quote(x.Name))
		}
		return append(list, x), nil
	})
}

// ChangeExport gives the export of the same name other settings, as [Server.Reload]
// does: for new connections, and, where its device must be replaced, when those
// that use it have left; see [Server.Evict]. A device that is broken is opened anew even
// if nothing else changes.
func (s *Server) ChangeExport(x *Export) (Report, error) {
	return s.edit(x.Name, func(list []*Export, at int) ([]*Export, error) {
		if at < 0 {
			return nil, fmt.Errorf("%w: %s", ErrNoExport, quote(x.Name))
		}
		list[at] = x
		return list, nil
	})
}

// RemoveExport takes an export away from new connections, and closes its device
// when those that use it have left; see [Server.Evict].
func (s *Server) RemoveExport(name string) (Report, error) {
	return s.edit(name, func(list []*Export, at int) ([]*Export, error) {
		if at < 0 {
			return nil, fmt.Errorf("%w: %s", ErrNoExport, quote(name))
		}
		return slices.Delete(list, at, at+1), nil
	})
}

// SetTLS replaces the certificates, and all else of TLS, for new connections.
func (s *Server) SetTLS(mode TLSMode, t *tls.Config) error {
	s.reloading.Lock()
	defer s.reloading.Unlock()
	cfg := *s.config()
	cfg.TLSMode, cfg.TLS = mode, t
	_, err := s.reload(cfg, func(string) bool { return false })
	return err
}

// config returns the configuration that is in force. It must not be changed.
func (s *Server) config() *Config {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cfg
}

// edit reloads the configuration that is in force with another list of exports.
// change gets a copy of the list, and where in it the export of that name is, or
// -1. No other export is touched.
func (s *Server) edit(name string, change func(list []*Export, at int) ([]*Export, error)) (Report, error) {
	s.reloading.Lock()
	defer s.reloading.Unlock()
	cfg := *s.config()
	at := slices.IndexFunc(cfg.Exports, func(x *Export) bool { return x.Name == name })
	list, err := change(slices.Clone(cfg.Exports), at)
	if err != nil {
		return Report{}, err
	}
	cfg.Exports = list
	return s.reload(cfg, func(x string) bool { return x == name })
}
