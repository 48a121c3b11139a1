package handshake

import (
	"context"

	"nbd.example/nbd/proto"
)

// goOption answers NBD_OPT_GO: like INFO, and then the transmission phase.
// proto.md, "Option types", NBD_OPT_INFO and NBD_OPT_GO.
func (s *session) goOption() error {
	a, ok, err := s.describe()
	if err != nil || !ok {
		return err
	}
	s.finish(a.blockSize)
	return nil
}

// Go chooses an export and begins the transmission phase. want is as for
// [Client.Info]; with [proto.InfoBlockSize] in it the client promises to keep to
// the block sizes that it is told. After an error that is a [*ReplyError],
// another export may be tried.
func (c *Client) Go(ctx context.Context, name string, want ...proto.Info) (*Agreement, error) {
	info, err := c.askInfo(ctx, proto.OptGo, name, want)
	if err != nil {
		return nil, err
	}
	return c.agree(name, info), nil
}
