package transmission

import (
	"encoding/binary"
	"errors"
	"strings"

	"nbd.example/nbd/block"
	"nbd.example/nbd/proto"
)

// style is how replies look.
type style uint8

const (
	simple style = iota
	structured
	extended
)

// requestSize is the length of a request's header, in bytes.
func (s style) requestSize() int {
	if s == extended {
		return proto.ExtendedRequestSize
	}
	return proto.RequestSize
}

// dataHeader is the length of what precedes the data of a read that is answered
// in one piece.
func (s style) dataHeader() int {
	switch s {
	case structured:
		return proto.StructuredReplySize + 8
	case extended:
		return proto.ExtendedReplySize + 8
	}
	return proto.SimpleReplySize
}

// appendChunk appends the header of a chunk.
func (s style) appendChunk(b []byte, r *proto.Request, t proto.ChunkType, f proto.ReplyFlags, length int) []byte {
	c := proto.Chunk{Flags: f, Type: t, Cookie: r.Cookie, Offset: r.Offset, Length: uint64(length)}
	if s == extended {
		return proto.AppendExtendedChunk(b, &c)
	}
	return proto.AppendChunk(b, &c)
}

// appendData appends what precedes n bytes of data from off.
func (s style) appendData(b []byte, r *proto.Request, off uint64, n int, f proto.ReplyFlags) []byte {
	if s == simple {
		return proto.AppendSimpleReply(b, proto.OK, r.Cookie)
	}
	b = s.appendChunk(b, r, proto.ChunkOffsetData, f, 8+n)
	return binary.BigEndian.AppendUint64(b, off)
}

// appendDone appends a reply without data, or the end of one with data.
func (s style) appendDone(b []byte, r *proto.Request) []byte {
	if s == simple {
		return proto.AppendSimpleReply(b, proto.OK, r.Cookie)
	}
	return s.appendChunk(b, r, proto.ChunkNone, proto.ReplyFlagDone, 0)
}

// appendError appends the last, or only, chunk of a failed request.
func (s style) appendError(b []byte, r *proto.Request, e proto.Errno, text string, err error) []byte {
	if s == simple {
		return proto.AppendSimpleReply(b, e, r.Cookie)
	}
	p := proto.ErrorPayload{Error: e, Message: presentable(text)}
	t := proto.ChunkErrorPlain
	var at *block.OffsetError
	if errors.As(err, &at) && at.Off >= 0 && uint64(at.Off) >= r.Offset && uint64(at.Off)-r.Offset < r.Length {
		t, p.Offset = proto.ChunkErrorOffset, uint64(at.Off)
	}
	n := 6 + len(p.Message)
	if t == proto.ChunkErrorOffset {
		n += 8
	}
	b = s.appendChunk(b, r, t, proto.ReplyFlagDone, n)
	return proto.AppendErrorPayload(b, t, &p)
}

// presentable makes text a string of the protocol, of at most 512 bytes.
// proto.md, "Conventions".
func presentable(text string) string {
	text = strings.ToValidUTF8(text[:min(len(text), 512)], "")
	return strings.ReplaceAll(text, "\x00", "")
}

// appendHole appends a hole chunk.
func (s style) appendHole(b []byte, r *proto.Request, off uint64, n uint32) []byte {
	b = s.appendChunk(b, r, proto.ChunkOffsetHole, 0, proto.HoleSize)
	return proto.AppendHole(b, off, n)
}
