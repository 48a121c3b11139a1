package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"runtime/debug"
	"syscall"
	"time"

	"nbd.example/nbd/handshake"
	"nbd.example/nbd/proto"
	"nbd.example/nbd/transmission"
)

// conn is a connection from accept to close. Thousands may be at rest, so that
// it holds nothing that only the handshake needs.
type conn struct {
	s       *Server
	cfg     *Config    // as it was when the connection came
	nc      net.Conn   // as it came, under TLS too
	end     chan error // nil if nobody waits for the end
	started time.Time
	origin  string // see there
	control
	// oldstyle names the one export of a listener for antique clients; nil elsewhere.
	oldstyle *string
	// Of the handshake's time limit, guarded by Server.mu.
	paused bool          // the export is being prepared
	credit time.Duration // the time that this took
}

// ServeConn serves one connection, and returns when it has ended and nc is
// closed. When ctx is done the connection is treated as in [Server.Shutdown]:
// in the handshake it ends, in the transmission phase it answers what it has
// read, and ends. ServeConn returns nil if the client ended the connection as the
// protocol wants it, and otherwise why it ended.
func (s *Server) ServeConn(ctx context.Context, nc net.Conn) error {
	return s.serveConn(ctx, &conn{nc: nc})
}

func (s *Server) serveConn(ctx context.Context, c *conn) error {
	c.end = make(chan error, 1)
	drain, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.drain, cancel)()
	if err := s.add(c); err != nil {
		c.nc.Close()
		return err
	}
	go c.run(ctx, drain)
	return <-c.end
}

// start serves an accepted connection, and does not wait for it.
func (s *Server) start(nc net.Conn, oldstyle *string) {
	c := &conn{nc: nc, oldstyle: oldstyle}
	if err := s.add(c); err != nil {
		nc.Close()
		return
	}
	go c.run(context.Background(), s.drain)
}

// add counts a connection, unless there are too many.
func (s *Server) add(c *conn) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		return ErrClosed
	}
	if err := s.admitConn(c); err != nil {
		return err
	}
	s.lastID++
	c.s, c.cfg, c.started, c.id = s, s.cfg, time.Now(), s.lastID
	s.conns[c] = struct{}{}
	return nil
}

// remove is the last thing that happens to a connection.
func (s *Server) remove(c *conn, err error) {
	c.nc.Close()
	s.mu.Lock()
	delete(s.conns, c)
	s.countOut(c)
	s.checkEmpty()
	s.mu.Unlock()
	if c.end != nil {
		c.end <- err
	}
}

func (c *conn) who() string { return addrText(c.nc.RemoteAddr()) }

// run leads a connection through the handshake and serves it. After TLS that is left
// to a new goroutine: its handshake makes the stack grow, and a connection that
// rests in the transmission phase would keep that.
func (c *conn) run(ctx, drain context.Context) {
	var err error
	handed := false
	defer func() {
		if v := recover(); v != nil {
			err = c.panicked("handshake", v)
		}
		if !handed {
			c.s.remove(c, err)
		}
	}()
	if failed := c.cfg.KeepAlive.apply(c.nc); failed != nil { // not worth ending a connection for
		c.s.log.Debug("cannot set the options of a connection", "client", c.who(), "error", failed)
	}
	var t *talk
	if t, err = c.negotiate(ctx); err != nil {
		c.s.log.LogAttrs(context.Background(), handshakeLevel(err), "no export chosen", slog.String("client", c.who()),
			slog.Duration("after", time.Since(c.started)), slog.Any("why", err))
		// Of TLS the client may not have read yet what is wrong, either.
		farewell(c.nc, c.nc, handshakeLevel(err) > slog.LevelDebug)
		if errors.Is(err, handshake.ErrAborted) || errors.Is(err, handshake.ErrHungUp) {
			err = nil
		}
		return
	}
	handed = true
	if t.conn == c.nc {
		c.transmit(drain, t)
	} else {
		go c.transmit(drain, t)
	}
}

// handshakeLevel keeps port scanners and clients that only ask out of the log.
// What remains is mostly TLS, and helps whoever sets it up.
func handshakeLevel(err error) slog.Level {
	for _, quiet := range []error{
		handshake.ErrAborted, handshake.ErrHungUp, handshake.ErrProtocol, io.EOF, io.ErrUnexpectedEOF, io.ErrClosedPipe, net.ErrClosed,
		os.ErrDeadlineExceeded, context.DeadlineExceeded, context.Canceled, syscall.ECONNRESET, syscall.EPIPE,
	} {
		if errors.Is(err, quiet) {
			return slog.LevelDebug
		}
	}
	return slog.LevelInfo
}

// talk is what the handshake leaves to the transmission phase.
type talk struct {
	conn    net.Conn
	lease   *lease
	session *transmission.Session
}

// negotiate settles on an export. It returns an error if the connection ends
// with the handshake.
func (c *conn) negotiate(ctx context.Context) (*talk, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	c.s.beginHandshake(c, cancel)
	defer c.s.endHandshake(c)

	r, err := c.haggle(context.WithValue(ctx, connKey{}, c))
	if err != nil {
		return nil, err
	}
	l := r.Export.Handle.(*lease)
	t := &talk{conn: r.Conn, lease: l, session: &transmission.Session{
		Device:     l.dev,
		Group:      l.group(),
		Flags:      r.Flags,
		Structured: r.Structured,
		Extended:   r.Extended,
		Contexts:   r.Contexts,
		Early:      r.Early,
		Tap:        l.cfg.Tap,
		Live:       &c.live,
	}}
	if r.BlockSizeAsked {
		// Others were told nothing, and are served whatever they ask for.
		t.session.MinBlock = r.Export.BlockSize.Minimum
	}
	l.dev.OnBroken(c.s.lostWrites(l.e))
	c.agreed(r, l)
	c.logConnected(r, l.cfg.Name)
	return t, nil
}

// haggle negotiates in the style of the listener.
func (c *conn) haggle(ctx context.Context) (*handshake.Result, error) {
	if c.oldstyle != nil {
		return c.cfg.handshake.NegotiateOldstyle(ctx, c.nc, *c.oldstyle)
	}
	return c.cfg.handshake.Negotiate(ctx, c.nc)
}

// logConnected says who uses what from now on.
func (c *conn) logConnected(r *handshake.Result, export string) {
	if !c.s.log.Enabled(context.Background(), slog.LevelInfo) {
		return
	}
	attrs := make([]slog.Attr, 0, 9)
	attrs = append(attrs, slog.String("client", c.who()), slog.String("export", export), slog.String("replies", replyStyle(r)))
	if r.Peer.TLS != nil {
		attrs = append(attrs, slog.String("tls", tls.VersionName(r.Peer.TLS.Version)), slog.String("tlspeer", tlsPeer(r.Peer.TLS)))
	}
	if p := peerProcess(c.nc); p != nil {
		attrs = append(attrs, slog.Int("pid", p.PID), slog.Uint64("uid", uint64(p.UID)), slog.Uint64("gid", uint64(p.GID)))
	}
	if c.s.log.Enabled(context.Background(), slog.LevelDebug) {
		attrs = append(attrs, slog.String("flags", r.Flags.String()))
	}
	c.s.log.LogAttrs(context.Background(), slog.LevelInfo, "client connected", attrs...)
}

// replyStyle names the replies that were agreed on.
func replyStyle(r *handshake.Result) string {
	switch {
	case r.Extended:
		return "extended"
	case r.Structured:
		return "structured"
	}
	return "simple"
}

// transmit serves the chosen export until the connection ends. It runs in a
// goroutine of its own, on a fresh stack.
func (c *conn) transmit(ctx context.Context, t *talk) {
	var (
		conn, l = t.conn, t.lease
		stats   transmission.Stats
		err     error
	)
	defer func() {
		if v := recover(); v != nil {
			err = c.panicked("transmission", v)
		}
		c.ended.Store(true)
		c.s.release(l)
		c.s.log.LogAttrs(context.Background(), slog.LevelInfo, "client disconnected",
			slog.String("client", c.who()), slog.String("export", l.cfg.Name), slog.Duration("after", time.Since(c.started)),
			slog.Uint64("requests", stats.Requests), slog.Uint64("errors", stats.Errors),
			slog.Uint64("read", stats.BytesRead), slog.Uint64("written", stats.BytesWritten), slog.String("why", why(err)))
		farewell(conn, c.nc, errors.Is(err, transmission.ErrDraining) || errors.Is(err, errIdle) || errors.Is(err, errDismissed) && !errors.Is(err, transmission.ErrCut))
		c.s.remove(c, err)
	}()
	session := t.session
	session.Log = func() *slog.Logger { return c.s.log.With("client", c.who(), "export", l.cfg.Name) }
	t = nil // nothing of the handshake stays
	if limit := l.cfg.IdleTimeout; limit > 0 {
		if session.Live == nil {
			session.Live = new(transmission.Live)
		}
		watched, stop := watchIdle(ctx, limit, session.Live)
		defer stop()
		ctx = watched
	}
	stats, err = c.s.serve(ctx, conn, session, &c.cfg.Transmission)
	err = c.dismissed(idled(ctx, err))
}

// why says for the log how a connection ended.
func why(err error) string {
	if err == nil {
		return "the client disconnected"
	}
	return err.Error()
}

// farewell ends conn, which may be TLS over nc. If the server ends it while the
// client may still be sending, closing at once would make the system discard
// replies that are on their way; so it says that there is no more to come, and
// waits a moment for the client to close.
func farewell(conn, nc net.Conn, linger bool) {
	if linger {
		nc.SetDeadline(time.Now().Add(lingerTimeout))
		half := closeWrite(conn)
		if conn != nc {
			half = closeWrite(nc) || half
		}
		if half {
			io.Copy(io.Discard, nc)
		}
	}
	// For TLS this sends an alert first, within a time limit of its own.
	conn.Close()
}

// closeWrite ends one direction of conn, if it can.
func closeWrite(conn net.Conn) bool {
	c, ok := conn.(interface{ CloseWrite() error })
	return ok && c.CloseWrite() == nil
}

// panicked logs a panic, which ends one connection and no more.
func (c *conn) panicked(where string, v any) error {
	c.s.log.Error("panic, the connection ends", "client", c.who(), "in", where, "panic", fmt.Sprint(v), "stack", string(debug.Stack()))
	return fmt.Errorf("panic in the %s: %v", where, v)
}

// open is called by the handshake.
func (s *Server) open(ctx context.Context, p handshake.Peer, name string, maxPayload int) (*handshake.Export, error) {
	l, err := s.acquire(ctx, Client{Addr: p.Addr, TLS: p.TLS}, name)
	if err != nil {
		return nil, err
	}
	return l.offer(maxPayload), nil
}

// list is called by the handshake. It shows what the client may use: for
// exports that demand TLS, see proto.md, "Option types", NBD_OPT_LIST.
func (s *Server) list(p handshake.Peer) []proto.ServerReply {
	s.mu.Lock()
	exports := make([]*Export, len(s.order))
	for i, e := range s.order {
		exports[i] = e.cfg
	}
	s.mu.Unlock()
	var all []proto.ServerReply
	for _, x := range exports {
		if !x.NotListed && (!x.RequireTLS || p.TLS != nil) && x.allows(p.Addr) {
			all = append(all, proto.ServerReply{Export: x.Name, Description: x.Description})
		}
	}
	return all
}

// newHandshake is what all connections under cfg negotiate with.
func (s *Server) newHandshake(cfg *Config) *handshake.Server {
	h := &handshake.Server{
		Mode:     handshakeModes[cfg.TLSMode],
		TLS:      cfg.TLS,
		Shutdown: s.drain.Done(),
		Open: func(ctx context.Context, p handshake.Peer, name string) (*handshake.Export, error) {
			return s.open(ctx, p, name, cfg.Transmission.MaxPayload)
		},
		Close: func(e *handshake.Export) { s.release(e.Handle.(*lease)) },
	}
	if cfg.AllowList {
		h.List = func(_ context.Context, p handshake.Peer) ([]proto.ServerReply, error) { return s.list(p), nil }
	}
	return h
}

var handshakeModes = map[TLSMode]handshake.TLSMode{
	NoTLS:     handshake.NoTLS,
	Selective: handshake.Selective,
	Forced:    handshake.Forced,
}
