package handshake

import (
	"context"
	"errors"
	"fmt"
	"io"

	"nbd.example/nbd/proto"
)

// exportNameOption answers NBD_OPT_EXPORT_NAME. It knows no error replies: what
// cannot be granted ends the connection without a byte.
// proto.md, "Option types", NBD_OPT_EXPORT_NAME.
func (s *session) exportNameOption() error {
	o := s.option
	switch {
	case s.srv.shuttingDown():
		return refusedName(ErrShutdown)
	case s.srv.Mode == Forced && s.peer.TLS == nil:
		return refusedName(ErrTLSRequired)
	case s.agreed.extended:
		return violation("%v after having agreed on extended headers", o.Option)
	case o.tooBig:
		return violation("an export name of %d bytes", o.Length)
	}
	if err := proto.CheckString(o.data); err != nil {
		return malformed("an export name", err)
	}
	name := string(o.data)
	e, err := s.open(name)
	if err != nil {
		return fmt.Errorf("%v %.80q: %w", o.Option, name, err)
	}
	if e.RequireBlockSize {
		return refusedName(ErrBlockSizeRequired)
	}
	m := ExportNameMessage{proto.ExportReply{Size: e.Size, Flags: s.flags(e)}, !s.noZeroes}
	s.wire.out = proto.AppendExportReply(s.wire.out, m.ExportReply)
	if m.Zeroes {
		s.wire.out = append(s.wire.out, make([]byte, proto.ExportNamePadding)...)
	}
	if s.srv.Trace != nil {
		s.trace(true, m, s.wire.out)
	}
	s.finish(false)
	return nil
}

func refusedName(why error) error {
	return fmt.Errorf("%v, which has no way to be refused: %w", proto.OptExportName, why)
}

// ExportName chooses an export and begins the transmission phase, the old way:
// the server cannot say why it refuses, it hangs up, which gives [ErrHungUp].
func (c *Client) ExportName(ctx context.Context, name string) (*Agreement, error) {
	switch {
	case c.extended:
		return nil, c.misuse(proto.OptExportName, "extended headers are agreed on")
	case proto.CheckString([]byte(name)) != nil:
		return nil, c.misuse(proto.OptExportName, "the export's name cannot be sent")
	}
	if err := c.allowed(proto.OptExportName); err != nil {
		return nil, err
	}
	var m ExportNameMessage
	err := c.guarded(ctx, func() (err error) {
		m, err = c.exportName(name)
		return err
	})
	if err != nil {
		return nil, err
	}
	return c.agree(name, &ExportInfo{Size: m.Size, Flags: m.Flags}), nil
}

func (c *Client) exportName(name string) (ExportNameMessage, error) {
	none := ExportNameMessage{}
	if err := c.send(proto.OptExportName, []byte(name)); err != nil {
		return none, c.broken(err)
	}
	n := proto.ExportNameReplySize
	if c.flags&proto.ClientNoZeroes == 0 {
		n += proto.ExportNamePadding
	}
	b, err := c.wire.peek(n)
	if errors.Is(err, io.EOF) || hungUp(err) && c.wire.buffered() == 0 {
		return none, c.broken(fmt.Errorf("%v %.80q: %w: there is no such export, or it is not for us", proto.OptExportName, name, ErrHungUp))
	} else if err != nil {
		return none, c.broken(fmt.Errorf("%v %.80q: %w", proto.OptExportName, name, err))
	}
	m := ExportNameMessage{proto.ParseExportReply(b), c.flags&proto.ClientNoZeroes == 0}
	if c.trace != nil {
		c.trace(Event{true, m, b})
	}
	c.wire.skip(n)
	return m, nil
}
