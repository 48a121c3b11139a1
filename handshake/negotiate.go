package handshake

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"

	"nbd.example/nbd/proto"
)

// ClientConfig is what [Client.Negotiate] is to reach. The zero value takes the
// default export in clear, with the best replies that the server knows.
type ClientConfig struct {
	Export string // the empty name is the default export

	// TLS upgrades the connection first, and fails if that cannot be. It must
	// name the server, see [Client.StartTLS]. Nil stays in clear.
	TLS *tls.Config
	// TLSOptional goes on in clear if the server refuses TLS. That protects from
	// those who only listen, not from those who can change what is sent.
	// proto.md, "Protocol downgrade attacks".
	TLSOptional bool

	NoExtended   bool // do not ask for extended headers
	NoStructured bool // do not ask for structured replies

	// Contexts are the metadata contexts to choose, by their full names. Those
	// that the server does not have are missing in the Agreement.
	Contexts []string
	// Want is what to ask about the export beyond its block sizes.
	Want []proto.Info
}

// Negotiate takes the usual way to the transmission phase: STARTTLS, then
// EXTENDED_HEADERS or else STRUCTURED_REPLY, SET_META_CONTEXT, and GO, or
// EXPORT_NAME where the server does not know GO. With an oldstyle server there is
// nothing to negotiate. If it fails it ends the
// session, softly where possible, and closes the connection.
func (c *Client) Negotiate(ctx context.Context, cfg ClientConfig) (*Agreement, error) {
	a, err := c.negotiate(ctx, &cfg)
	if err != nil {
		c.Abort(ctx)
		return nil, err
	}
	return a, nil
}

func (c *Client) negotiate(ctx context.Context, cfg *ClientConfig) (*Agreement, error) {
	if c.Oldstyle() {
		return c.negotiateOldstyle(cfg)
	}
	if err := c.upgrade(ctx, cfg); err != nil {
		return nil, err
	}
	if !c.Fixed() {
		return c.ExportName(ctx, cfg.Export)
	}
	if err := c.chunks(ctx, cfg); err != nil {
		return nil, err
	}
	if len(cfg.Contexts) > 0 && (c.structured || c.extended) {
		if _, err := c.SetMetaContext(ctx, cfg.Export, cfg.Contexts...); err != nil && !canDoWithout(err) {
			return nil, err
		}
	}
	a, err := c.Go(ctx, cfg.Export, append([]proto.Info{proto.InfoBlockSize}, cfg.Want...)...)
	if errors.Is(err, ErrUnsupported) && !c.extended {
		return c.ExportName(ctx, cfg.Export)
	}
	return a, err
}

// upgrade begins TLS if that is wanted. A server without fixed newstyle has none.
// proto.md, "Client-side requirements".
func (c *Client) upgrade(ctx context.Context, cfg *ClientConfig) error {
	if cfg.TLS == nil {
		return nil
	}
	if !c.Fixed() {
		if cfg.TLSOptional {
			return nil
		}
		return fmt.Errorf("handshake: TLS is wanted, but the server does not speak fixed newstyle: %w", ErrUnsupported)
	}
	err := c.StartTLS(ctx, cfg.TLS)
	if cfg.TLSOptional && err != nil && isReply(err) && !errors.Is(err, ErrShutdown) {
		return nil
	}
	return err
}

// chunks asks for the best kind of replies.
func (c *Client) chunks(ctx context.Context, cfg *ClientConfig) error {
	if !cfg.NoExtended {
		if err := c.ExtendedHeaders(ctx); err == nil || !canDoWithout(err) {
			return err
		}
	}
	if !cfg.NoStructured {
		if err := c.StructuredReply(ctx); err != nil && !canDoWithout(err) {
			return err
		}
	}
	return nil
}

// canDoWithout tells a refusal that leaves the rest possible from others.
func canDoWithout(err error) bool {
	return isReply(err) && !errors.Is(err, ErrShutdown) && !errors.Is(err, ErrTLSRequired)
}
