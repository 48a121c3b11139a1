package handshake

import (
	"context"
	"fmt"
	"net"

	"nbd.example/nbd/proto"
)

// OldstyleMessage is all that is said in oldstyle negotiation.
type OldstyleMessage struct{ proto.OldstyleGreeting }

func (OldstyleMessage) message() {}

func (m OldstyleMessage) String() string {
	s := fmt.Sprintf("oldstyle greeting, export of %d bytes, flags %v", m.Size, m.Flags)
	if m.Handshake != 0 {
		s += fmt.Sprintf(", handshake flags %v", m.Handshake)
	}
	return s
}

// NegotiateOldstyle is [Server.Negotiate] for clients of before 2011: it tells
// the client the size and the flags of one export, and the transmission phase
// begins. Nothing is asked, so the export is fixed by the caller, and a client
// that may not have it finds the connection closed. proto.md, "Oldstyle negotiation".
//
// Where [Server.Mode] is Forced nobody is served, for there is no TLS. The client
// learns nothing of block sizes and contexts; replies are simple. Shutdown and ctx
// count as they do in Negotiate.
func (s *Server) NegotiateOldstyle(ctx context.Context, conn net.Conn, export string) (*Result, error) {
	if err := s.check(); err != nil {
		return nil, fmt.Errorf("oldstyle handshake: %w", err)
	}
	var g guard
	if err := g.begin(ctx, conn); err != nil {
		return nil, fmt.Errorf("oldstyle handshake: %w", err)
	}
	n := &session{srv: s, ctx: ctx, peer: Peer{Addr: conn.RemoteAddr()}}
	n.wire.init(conn)
	defer func() { // also when one of the caller's functions panics
		g.end()
		n.closeExport()
		n.wire.release()
	}()
	if err := n.oldstyle(export); err != nil {
		return nil, fmt.Errorf("oldstyle handshake: %w", explain(ctx, err))
	}
	n.export = nil // handed over
	return n.result, nil
}

func (s *session) oldstyle(name string) error {
	switch {
	case s.srv.shuttingDown():
		return ErrShutdown
	case s.srv.Mode == Forced:
		return ErrTLSRequired
	}
	e, err := s.open(name)
	switch {
	case err != nil:
		return fmt.Errorf("export %.80q: %w", name, err)
	case e.RequireBlockSize:
		return fmt.Errorf("export %.80q: %w", name, ErrBlockSizeRequired)
	}
	m := OldstyleMessage{proto.OldstyleGreeting{Size: e.Size, Flags: s.flags(e)}}
	s.wire.out = proto.AppendOldstyle(s.wire.out, m.OldstyleGreeting)
	if s.srv.Trace != nil {
		s.trace(true, m, s.wire.out)
	}
	if err := s.wire.flush(); err != nil {
		return fmt.Errorf("greeting: %w", err)
	}
	s.finish(false)
	return nil
}

// Oldstyle says whether the server has greeted in oldstyle, which [Setup.Oldstyle]
// must have allowed. Then [Client.TakeOldstyle] is the only step.
func (c *Client) Oldstyle() bool { return c.oldstyle != nil }

// TakeOldstyle begins the transmission phase with an oldstyle server, which has
// one export and has told all about it.
func (c *Client) TakeOldstyle() (*Agreement, error) {
	switch {
	case c.oldstyle == nil:
		return nil, fmt.Errorf("handshake: %w: the server did not greet in oldstyle", ErrState)
	case c.err != nil:
		return nil, c.err
	case c.state != haggling:
		return nil, fmt.Errorf("handshake: %w: the negotiation is over", ErrState)
	}
	return c.agree("", &ExportInfo{Size: c.oldstyle.Size, Flags: c.oldstyle.Flags}), nil
}

// greetOldstyle reads the rest of an oldstyle server's greeting.
func (c *Client) greetOldstyle() error {
	b, err := c.wire.peek(proto.OldstyleSize)
	if err != nil {
		return c.broken(fmt.Errorf("reading the greeting of an oldstyle server: %w", err))
	}
	g, err := proto.ParseOldstyle(b)
	if err != nil {
		return c.broken(malformed("its greeting", err))
	}
	if c.trace != nil {
		c.trace(Event{true, OldstyleMessage{g}, b})
	}
	c.wire.skip(proto.OldstyleSize)
	c.oldstyle = &g
	return nil
}

// negotiateOldstyle is Negotiate with an oldstyle server.
func (c *Client) negotiateOldstyle(cfg *ClientConfig) (*Agreement, error) {
	switch {
	case cfg.TLS != nil && !cfg.TLSOptional:
		return nil, fmt.Errorf("handshake: TLS is wanted, but the server speaks oldstyle: %w", ErrUnsupported)
	case cfg.Export != "":
		return nil, fmt.Errorf("handshake: export %.80q is wanted, but the server speaks oldstyle, where exports have no names: %w", cfg.Export, ErrUnsupported)
	}
	return c.TakeOldstyle()
}
