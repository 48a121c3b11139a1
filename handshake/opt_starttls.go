package handshake

import (
	"context"
	"crypto/tls"
	"fmt"

	"nbd.example/nbd/proto"
)

// startTLS answers NBD_OPT_STARTTLS and upgrades the connection. Nothing that
// was agreed in clear survives, and nothing that came in clear behind the option
// is read as if it had come protected: whoever sent that could be anybody.
// proto.md, "Option types", NBD_OPT_STARTTLS, and "TLS support".
func (s *session) startTLS() error {
	switch {
	case s.srv.Mode == NoTLS:
		return s.refuse(proto.RepErrPolicy, "this server has no TLS")
	case s.peer.TLS != nil:
		return s.refuse(proto.RepErrInvalid, "TLS is in use already")
	case s.option.Length != 0:
		return s.refuseData()
	case s.wire.buffered() > 0:
		return violation("%d bytes in clear behind %v", s.wire.buffered(), proto.OptStartTLS)
	}
	s.agreed.structured, s.agreed.extended = false, false
	s.forgetContexts()
	s.closeExport()
	if err := s.ack(); err != nil {
		return err
	}
	if err := s.wire.flush(); err != nil {
		return fmt.Errorf("answering %v: %w", proto.OptStartTLS, err)
	}
	c := tls.Server(s.wire.conn, s.srv.tlsConfig())
	if err := c.HandshakeContext(s.ctx); err != nil {
		return fmt.Errorf("TLS: %w", err)
	}
	s.wire.conn = c
	state := c.ConnectionState()
	s.peer.TLS = &state
	if s.srv.Trace != nil {
		s.trace(false, TLSMessage{state}, nil)
	}
	return nil
}

// tlsConfig returns the server's configuration with what NBD wants: full records
// from the start, since whole replies are written at once, and TLS 1.2 or later.
// proto.md, "TLS versions".
func (s *Server) tlsConfig() *tls.Config {
	s.tlsOnce.Do(func() { s.tlsReady = forNBD(s.TLS) })
	return s.tlsReady
}

// forNBD is done once for each server: clones do not share the keys of session
// tickets that are made later, and a resumption must find them.
func forNBD(c *tls.Config) *tls.Config {
	c = c.Clone()
	c.DynamicRecordSizingDisabled = true
	if c.MinVersion == 0 {
		c.MinVersion = tls.VersionTLS12
	}
	return c
}

// StartTLS upgrades the connection to TLS, and forgets what was agreed before.
// config must name the server (ServerName), because a certificate whose name
// nobody compares proves nothing, unless InsecureSkipVerify says expressly that
// it need not. An error that is no [*ReplyError] and not [ErrState] ends the
// connection: after the server's agreement there is no way back.
//
// With TLS 1.3, a server that does not accept the client's certificate says so
// only in answer to the next step.
func (c *Client) StartTLS(ctx context.Context, config *tls.Config) error {
	switch {
	case c.tls != nil:
		return c.misuse(proto.OptStartTLS, "TLS is in use already")
	case config == nil || config.ServerName == "" && !config.InsecureSkipVerify:
		return c.misuse(proto.OptStartTLS, "there is no server name to verify the certificate against")
	}
	if err := c.step(ctx, proto.OptStartTLS, nil, nil); err != nil {
		return err
	}
	if n := c.wire.buffered(); n > 0 {
		return c.broken(violation("%d bytes in clear behind its answer to %v", n, proto.OptStartTLS))
	}
	c.structured, c.extended = false, false
	c.forgetContexts()
	t := tls.Client(c.wire.conn, forNBD(config))
	err := c.guarded(ctx, func() error { return t.HandshakeContext(ctx) })
	if err != nil {
		return c.broken(fmt.Errorf("TLS: %w", err))
	}
	c.wire.conn = t
	state := t.ConnectionState()
	c.tls = &state
	if c.trace != nil {
		c.trace(Event{false, TLSMessage{state}, nil})
	}
	return nil
}
