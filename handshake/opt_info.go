package handshake

import (
	"context"

	"nbd.example/nbd/proto"
)

// info answers NBD_OPT_INFO. proto.md, "Option types", NBD_OPT_INFO and NBD_OPT_GO.
func (s *session) info() error {
	_, _, err := s.describe()
	return err
}

// asked is what a client wants to know. NBD_INFO_EXPORT it gets in any case.
type asked struct{ name, description, blockSize bool }

func parseAsked(requests []proto.Info) (a asked) {
	for _, i := range requests {
		switch i {
		case proto.InfoName:
			a.name = true
		case proto.InfoDescription:
			a.description = true
		case proto.InfoBlockSize:
			a.blockSize = true
		}
	}
	return a
}

// describe is what INFO and GO have in common. It answers completely; ok says
// that the answer was not an error, and err that the connection must end.
func (s *session) describe() (a asked, ok bool, err error) {
	if s.option.tooBig {
		return a, false, s.refuseBig()
	}
	req, err := proto.ParseInfoRequest(s.option.data)
	if err != nil {
		return a, false, s.refuse(proto.RepErrInvalid, "%v", err)
	}
	e, err := s.open(req.Export)
	if err != nil {
		return a, false, s.refuseError(err)
	}
	a = parseAsked(req.Requests)
	if e.RequireBlockSize && !a.blockSize {
		// The sizes go along, which may save the client a question.
		s.scratch = proto.AppendInfoBlockSize(s.scratch[:0], e.blockSize())
		if err := s.reply(proto.RepInfo, s.scratch); err != nil {
			return a, false, err
		}
		return a, false, s.refuse(proto.RepErrBlockSizeReqd, "this export serves only clients that keep to its block sizes: ask for NBD_INFO_BLOCK_SIZE")
	}
	if err := s.sendInfo(e, a); err != nil {
		return a, false, err
	}
	return a, true, s.ack()
}

func (s *session) sendInfo(e *Export, a asked) error {
	s.scratch = proto.AppendInfoExport(s.scratch[:0], proto.ExportReply{Size: e.Size, Flags: s.flags(e)})
	err := s.reply(proto.RepInfo, s.scratch)
	if a.name && err == nil {
		s.scratch = proto.AppendInfoString(s.scratch[:0], proto.InfoName, e.Name)
		err = s.reply(proto.RepInfo, s.scratch)
	}
	if a.description && e.Description != "" && err == nil {
		s.scratch = proto.AppendInfoString(s.scratch[:0], proto.InfoDescription, e.Description)
		err = s.reply(proto.RepInfo, s.scratch)
	}
	if a.blockSize && err == nil {
		s.scratch = proto.AppendInfoBlockSize(s.scratch[:0], e.blockSize())
		err = s.reply(proto.RepInfo, s.scratch)
	}
	return err
}

// ExportInfo is what a server has told about an export.
type ExportInfo struct {
	Size        uint64 // bytes
	Flags       proto.TransmissionFlags
	Name        string // canonical; empty if it was not told
	Description string // empty if it was not told
	BlockSize   proto.BlockSize
	// BlockSizeTold says whether BlockSize is the server's.
	BlockSizeTold bool
}

// Info asks about an export without choosing it. want lists what it should be
// told beyond size and flags; servers may tell less, or more. With a
// [*ReplyError], the information that came before the error is returned too.
func (c *Client) Info(ctx context.Context, name string, want ...proto.Info) (*ExportInfo, error) {
	return c.askInfo(ctx, proto.OptInfo, name, want)
}

// askInfo is what INFO and GO have in common.
func (c *Client) askInfo(ctx context.Context, o proto.Option, name string, want []proto.Info) (*ExportInfo, error) {
	if proto.CheckString([]byte(name)) != nil {
		return nil, c.misuse(o, "the export's name cannot be sent")
	}
	var info ExportInfo
	complete := false
	data := proto.AppendInfoRequest(nil, &proto.InfoRequest{Export: name, Requests: unique(want)})
	err := c.step(ctx, o, data, func(r proto.OptionReply, data []byte) error {
		if r != proto.RepInfo {
			return errMisplaced
		}
		i, err := proto.ParseInfoReply(data)
		info.take(&i)
		complete = complete || i.Type == proto.InfoExport
		return err
	})
	switch {
	case err == nil && !complete:
		return nil, c.broken(violation("%v to %v without %v", proto.RepAck, o, proto.InfoExport))
	case err != nil && !isReply(err):
		return nil, err
	}
	return &info, err
}

// take notes one piece of information; unknown ones are ignored.
func (e *ExportInfo) take(i *proto.InfoReply) {
	switch i.Type {
	case proto.InfoExport:
		e.Size, e.Flags = i.Export.Size, i.Export.Flags
	case proto.InfoName:
		e.Name = i.Text
	case proto.InfoDescription:
		e.Description = i.Text
	case proto.InfoBlockSize:
		e.BlockSize, e.BlockSizeTold = i.BlockSize, true
	}
}

// unique drops repetitions, which a client must not send.
func unique(want []proto.Info) (out []proto.Info) {
	seen := map[proto.Info]bool{}
	for _, i := range want {
		if !seen[i] {
			seen[i] = true
			out = append(out, i)
		}
	}
	return out
}
