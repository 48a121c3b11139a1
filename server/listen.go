package server

import (
	"errors"
	"fmt"
	"net"
	"syscall"
	"time"

	"nbd.example/nbd/internal/socket"
)

const (
	firstBackoff = 5 * time.Millisecond
	lastBackoff  = time.Second
)

// Serve accepts connections from l and serves them until [Server.Shutdown] is
// called; then it returns nil. Any other return says why l gave no more
// connections; those that it gave live on. Serve closes l. Several listeners may
// be served at once.
func (s *Server) Serve(l net.Listener) error { return s.accept(l, nil) }

// accept is Serve and ServeOldstyle.
func (s *Server) accept(l net.Listener, oldstyle *string) error {
	defer l.Close()
	s.mu.Lock()
	if s.closing {
		s.mu.Unlock()
		return nil
	}
	s.listeners[l] = struct{}{}
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.listeners, l)
		s.mu.Unlock()
	}()

	var wait time.Duration
	for {
		nc, err := l.Accept()
		if err == nil {
			wait = 0
			s.start(socket.Own(nc), oldstyle)
			continue
		}
		if s.isClosing() {
			return nil
		}
		if !temporary(err) {
			return fmt.Errorf("accept on %s: %w", addrText(l.Addr()), err)
		}
		if wait == 0 {
			s.log.Warn("cannot accept connections, trying again until it works", "listener", addrText(l.Addr()), "error", err)
		}
		wait = min(max(2*wait, firstBackoff), lastBackoff)
		s.pause(wait)
	}
}

// pause waits, or until the server shuts down.
func (s *Server) pause(d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-s.drain.Done():
	}
}

// temporary tells an error of one connection, or of the moment, from one of the
// listener. Besides those that are temporary everywhere, accept(2) passes on
// the network's errors, and lacks of memory pass, too.
func temporary(err error) bool {
	if errors.Is(err, net.ErrClosed) {
		return false
	}
	for _, e := range []error{
		syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.ECONNABORTED, syscall.ECONNRESET,
		syscall.EINTR, syscall.EPERM, syscall.EPROTO, syscall.ENETDOWN, syscall.ENOPROTOOPT, syscall.EHOSTDOWN,
		syscall.EHOSTUNREACH, syscall.ENETUNREACH,
	} {
		if errors.Is(err, e) {
			return true
		}
	}
	var t interface{ Timeout() bool }
	return errors.As(err, &t) && t.Timeout()
}
