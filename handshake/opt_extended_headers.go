package handshake

import (
	"context"

	"nbd.example/nbd/proto"
)

// extendedHeaders answers NBD_OPT_EXTENDED_HEADERS.
// Extension, "Option types", NBD_OPT_EXTENDED_HEADERS.
func (s *session) extendedHeaders() error {
	if s.option.Length != 0 {
		return s.refuseData()
	}
	s.agreed.extended = true
	return s.ack()
}

// ExtendedHeaders asks for extended headers, which take precedence over
// structured replies. With them, [Client.ExportName] is not allowed.
func (c *Client) ExtendedHeaders(ctx context.Context) error {
	if err := c.step(ctx, proto.OptExtendedHeaders, nil, nil); err != nil {
		return err
	}
	c.extended = true
	return nil
}
