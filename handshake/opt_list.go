package handshake

import (
	"context"

	"nbd.example/nbd/proto"
)

// list answers NBD_OPT_LIST. proto.md, "Option types", NBD_OPT_LIST.
func (s *session) list() error {
	if s.option.Length != 0 {
		return s.refuseData()
	}
	if s.srv.List == nil {
		return s.refuse(proto.RepErrPolicy, "this server does not list its exports")
	}
	all, err := s.srv.List(s.ctx, s.peer)
	if err != nil {
		return s.refuseError(err)
	}
	for i := range all {
		if proto.CheckString([]byte(all[i].Export)) != nil || proto.CheckString([]byte(all[i].Description)) != nil {
			continue
		}
		s.scratch = proto.AppendServerReply(s.scratch[:0], &all[i])
		if err := s.reply(proto.RepServer, s.scratch); err != nil {
			return err
		}
	}
	s.listed = max(s.listed, len(all))
	return s.ack()
}

// List asks for the exports. A server need not show all of them, nor any.
func (c *Client) List(ctx context.Context) ([]proto.ServerReply, error) {
	var all []proto.ServerReply
	err := c.step(ctx, proto.OptList, nil, func(r proto.OptionReply, data []byte) error {
		if r != proto.RepServer {
			return errMisplaced
		}
		e, err := proto.ParseServerReply(data)
		all = append(all, e)
		return err
	})
	if err != nil {
		return nil, err
	}
	return all, nil
}
