package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"nbd.example/nbd/transmission"
)

// Errors of a Server.
var (
	// ErrClosed is returned for what is asked of a server that is shutting down.
	ErrClosed = errors.New("the server is shutting down")
	// ErrCrowded is returned by [Server.ServeConn] for a connection beyond
	// [Config.MaxConnections] or [Config.MaxPerClient].
	ErrCrowded = errors.New("the server has all its connections")

	errOutOfOrder = errors.New("the export cannot be used")
)

const (
	defaultHandshakeTimeout = 30 * time.Second
	// defaultMemory bounds what requests of all connections take, in bytes.
	defaultMemory = 1 << 30
	// haggleGrace is how long a client in the handshake may go on while the
	// server shuts down, to hear NBD_REP_ERR_SHUTDOWN.
	haggleGrace = time.Second
	// lingerTimeout bounds the wait for a client to take its last replies.
	lingerTimeout = 2 * time.Second
	// cutGrace bounds the wait for connections that were cut.
	cutGrace = 5 * time.Second
)

// serveFunc has the form of transmission.Serve.
type serveFunc func(context.Context, net.Conn, *transmission.Session, *transmission.Config) (transmission.Stats, error)

// Server serves exports. All its methods may be called concurrently.
type Server struct {
	log   *slog.Logger
	serve serveFunc // transmission.Serve, but in tests
	// memory bounds what all connections take together, if the configuration
	// brings no other.
	memory *transmission.Memory
	// patience bounds the wait for connections that were cut; cutGrace, but in tests.
	patience time.Duration
	// drain is done when Shutdown begins.
	drain context.Context
	stop  context.CancelFunc
	// reloading is held while the table of exports is replaced, and by Shutdown
	// before it closes the devices.
	reloading sync.Mutex
	// background counts the goroutines that replace devices.
	background sync.WaitGroup

	mu        sync.Mutex
	cfg       *Config            // for new connections; never changed, but replaced
	exports   map[string]*export // by their own names, with the removed ones
	names     map[string]*export // by all names that clients may use
	order     []*export          // as configured
	listeners map[net.Listener]struct{}
	conns     map[*conn]struct{}
	haggling  haggling
	lastID    uint64        // of conns
	stirred   chan struct{} // closed, and made anew, when the device of an export has moved
	replacing bool          // a reload is under way
	crowd     crowd         // of all connections
	origins   map[string]*crowd
	closing   bool          // Shutdown was called
	empty     chan struct{} // closed when closing is set and conns is empty
}

// New makes a server and opens the devices of all its exports that share one.
// If anything is wrong it opens nothing, or closes what it has opened.
func New(cfg Config) (*Server, error) {
	s := &Server{
		log:       cfg.Logger,
		serve:     transmission.Serve,
		memory:    transmission.NewMemory(defaultMemory),
		patience:  cutGrace,
		exports:   make(map[string]*export),
		names:     make(map[string]*export),
		listeners: make(map[net.Listener]struct{}),
		conns:     make(map[*conn]struct{}),
		origins:   make(map[string]*crowd),
		haggling:  haggling{conns: make(map[*conn]context.CancelCauseFunc)},
		empty:     make(chan struct{}),
		stirred:   make(chan struct{}),
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	s.drain, s.stop = context.WithCancel(context.Background())
	if _, err := s.Reload(cfg); err != nil {
		s.stop()
		return nil, err
	}
	return s, nil
}

func (s *Server) isClosing() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closing
}

// Shutdown ends the server. It closes the listeners and refuses options with
// NBD_REP_ERR_SHUTDOWN; each connection answers the requests that it has read,
// and ends; then the devices are closed. If ctx is done before that, the
// connections are cut. A device that a connection still uses then, because its
// back end does not return, is left open, and the error says so; if a reload hangs in
// opening one, all are. Later calls wait for the first, and may cut connections on
// their own.
func (s *Server) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	if !s.closing {
		s.closing = true
		s.stop()
		for l := range s.listeners {
			l.Close()
		}
		s.hurryHandshakes()
		s.checkEmpty()
	}
	s.mu.Unlock()

	err := s.await(ctx)
	unlock, stuck := s.awaitReload(ctx)
	if stuck != nil {
		return errors.Join(err, stuck)
	}
	defer unlock()
	return errors.Join(err, s.closeAll())
}

// awaitReload waits until nobody opens or closes devices any more, a reload or a move, and
// returns what lets others do so. They have s.drain as their context, but the system may not
// care; so when ctx is done they have a moment, and no more.
func (s *Server) awaitReload(ctx context.Context) (unlock func(), err error) {
	held, given := make(chan struct{}), make(chan struct{})
	go func() {
		s.reloading.Lock()
		s.background.Wait()
		select {
		case held <- struct{}{}:
		case <-given:
			s.reloading.Unlock()
		}
	}()
	select {
	case <-held:
		return s.reloading.Unlock, nil
	case <-ctx.Done():
	}
	t := time.NewTimer(s.patience)
	defer t.Stop()
	select {
	case <-held:
		return s.reloading.Unlock, nil
	case <-t.C:
		close(given)
		return nil, fmt.Errorf("shutting down: the opening or closing of an export does not end, all devices stay open: %w", context.Cause(ctx))
	}
}

// checkEmpty notes that the last connection of a closing server has gone. The
// caller holds s.mu.
func (s *Server) checkEmpty() {
	if !s.closing || len(s.conns) > 0 {
		return
	}
	select {
	case <-s.empty:
	default:
		close(s.empty)
	}
}

// await waits for the connections to end, and cuts them when ctx is done.
func (s *Server) await(ctx context.Context) error {
	select {
	case <-s.empty:
		return nil
	case <-ctx.Done():
	}
	s.mu.Lock()
	n := len(s.conns)
	for c := range s.conns {
		c.cut()
	}
	s.mu.Unlock()
	if n == 0 {
		return nil
	}
	err := fmt.Errorf("shutting down: %d connections were cut: %w", n, context.Cause(ctx))
	s.log.Warn("connections cut", "connections", n, "why", context.Cause(ctx))
	t := time.NewTimer(s.patience)
	defer t.Stop()
	select {
	case <-s.empty:
	case <-t.C:
	}
	return err
}

// closeAll closes every device that no connection uses.
func (s *Server) closeAll() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	for _, e := range s.exports {
		if e.users > 0 {
			errs = append(errs, fmt.Errorf("export %s: %d connections do not end, the device stays open", quote(e.name), e.users))
			continue
		}
		if e.dev != nil {
			if err := closeGuarded(e.dev.Device); err != nil {
				s.log.Error("closing a device failed", "export", e.name, "error", err)
				errs = append(errs, fmt.Errorf("export %s: closing the device: %w", quote(e.name), err))
			}
			e.dev = nil
		}
	}
	return errors.Join(errs...)
}
