package handshake

import (
	"context"

	"nbd.example/nbd/proto"
)

// structuredReply answers NBD_OPT_STRUCTURED_REPLY. proto.md, "Option types",
// NBD_OPT_STRUCTURED_REPLY; extended headers take precedence. A second request
// changes nothing and is accepted.
func (s *session) structuredReply() error {
	switch {
	case s.option.Length != 0:
		return s.refuseData()
	case s.agreed.extended:
		return s.refuse(proto.RepErrExtHeaderReqd, "extended headers are agreed on, which replace structured replies")
	}
	s.agreed.structured = true
	return s.ack()
}

// StructuredReply asks for structured replies.
func (c *Client) StructuredReply(ctx context.Context) error {
	if c.extended {
		return c.misuse(proto.OptStructuredReply, "extended headers are agreed on")
	}
	if err := c.step(ctx, proto.OptStructuredReply, nil, nil); err != nil {
		return err
	}
	c.structured = true
	return nil
}
