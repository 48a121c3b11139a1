package handshake

import (
	"context"

	"nbd.example/nbd/proto"
)

// abort answers NBD_OPT_ABORT, with or without data, and ends the session. A
// client that has not waited for the answer is not at fault, so whether the
// answer got through does not matter. proto.md, "Option types", NBD_OPT_ABORT.
func (s *session) abort() error {
	if err := s.ack(); err != nil {
		return ErrAborted
	}
	s.wire.flush()
	return ErrAborted
}

// Abort gives up and closes the connection: the soft disconnect. Old servers
// hang up without an answer, so how the answer ends is not reported.
func (c *Client) Abort(ctx context.Context) error {
	if c.state != haggling || c.err != nil || !c.Fixed() {
		// There is nothing to say, or no way to say it.
		return c.Close()
	}
	err := c.guarded(ctx, func() error {
		c.call(proto.OptAbort, nil, nil)
		return nil
	})
	if cerr := c.Close(); err == nil && !hungUp(cerr) {
		err = cerr // TLS's goodbye is allowed to come too late
	}
	return err
}
