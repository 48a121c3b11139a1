package client

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"

	"nbd.example/nbd/handshake"
	"nbd.example/nbd/proto"
)

// Raw is a connection in the transmission phase whose requests and replies are
// the caller's own, right or wrong: for tests of servers. It is for one
// goroutine that sends and one that receives. Deadlines are set on Conn.
type Raw struct {
	// Agreement is what was negotiated. Read by Receive, not from its Conn.
	handshake.Agreement
	in *bufio.Reader
}

// DialRaw is Dial without a transmission phase of its own.
func DialRaw(ctx context.Context, nbdURI string, cfg *Config) (*Raw, error) {
	a, _, err := dial(ctx, nbdURI, cfg)
	if err != nil {
		return nil, err
	}
	return newRaw(a), nil
}

// NewRaw is New without a transmission phase of its own.
func NewRaw(ctx context.Context, conn net.Conn, cfg *Config) (*Raw, error) {
	if cfg == nil {
		cfg = &Config{}
	}
	a, err := negotiate(ctx, conn, cfg)
	if err != nil {
		return nil, err
	}
	return newRaw(a), nil
}

func newRaw(a *handshake.Agreement) *Raw {
	return &Raw{Agreement: *a, in: bufio.NewReaderSize(io.MultiReader(bytes.NewReader(a.Early), a.Conn), 64<<10)}
}

// RawRequest is a request of any form.
type RawRequest struct {
	Magic         uint32 // 0 means the right one
	proto.Request        // as it goes onto the wire: PAYLOAD_LEN is not added
	Payload       []byte // follows the header, whatever that says
}

// Send sends requests, all in one write.
func (r *Raw) Send(requests ...*RawRequest) error {
	var b []byte
	for _, q := range requests {
		at := len(b)
		if r.Extended {
			b = proto.AppendExtendedRequest(b, &q.Request)
		} else {
			b = proto.AppendRequest(b, &q.Request)
		}
		if q.Magic != 0 {
			binary.BigEndian.PutUint32(b[at:], q.Magic)
		}
		b = append(b, q.Payload...)
	}
	_, err := r.Conn.Write(b)
	return err
}

// RawReply is a simple reply, or one chunk of a structured or extended one.
type RawReply struct {
	Magic  uint32
	Error  proto.Errno      // simple replies
	Cookie uint64           // all
	Flags  proto.ReplyFlags // chunks
	Type   proto.ChunkType  // chunks
	Offset uint64           // extended chunks: the header's
	// Payload is that of a chunk, as long as the header said. The data behind a
	// simple reply to a read must be fetched by ReadFull: only who has sent the
	// request knows their length.
	Payload []byte
}

// maxRawPayload bounds what Receive takes: 64 MiB and a chunk's own fields.
const maxRawPayload = 64<<20 + 64

// Receive reads the next reply or chunk. io.EOF says that the server has closed
// the connection between two of them.
func (r *Raw) Receive() (*RawReply, error) {
	m, err := r.in.Peek(4)
	if err != nil {
		if len(m) > 0 && err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	out := &RawReply{Magic: binary.BigEndian.Uint32(m)}
	var head [proto.ExtendedReplySize]byte
	size := map[uint32]int{
		proto.MagicSimpleReply: proto.SimpleReplySize, proto.MagicStructuredReply: proto.StructuredReplySize,
		proto.MagicExtendedReply: proto.ExtendedReplySize,
	}[out.Magic]
	if size == 0 {
		return nil, fmt.Errorf("peer sent a reply that begins with %#08x", out.Magic)
	}
	if _, err := io.ReadFull(r.in, head[:size]); err != nil {
		return nil, err
	}
	var c proto.Chunk
	switch out.Magic {
	case proto.MagicSimpleReply:
		var s proto.SimpleReply
		proto.ParseSimpleReply(head[:], &s)
		out.Error, out.Cookie = s.Error, s.Cookie
		return out, nil
	case proto.MagicStructuredReply:
		proto.ParseChunk(head[:], &c)
	default:
		proto.ParseExtendedChunk(head[:], &c)
	}
	out.Flags, out.Type, out.Cookie, out.Offset = c.Flags, c.Type, c.Cookie, c.Offset
	if c.Length > maxRawPayload {
		return out, fmt.Errorf("peer sent %v with %d bytes, over the limit of %d", c.Type, c.Length, maxRawPayload)
	}
	out.Payload, err = io.ReadAll(io.LimitReader(r.in, int64(c.Length)))
	if err == nil && uint64(len(out.Payload)) < c.Length {
		err = io.ErrUnexpectedEOF
	}
	return out, err
}

// ReadFull fills p with what follows.
func (r *Raw) ReadFull(p []byte) error {
	_, err := io.ReadFull(r.in, p)
	return err
}

// Close drops the connection without a word but TLS's own.
func (r *Raw) Close() error { return r.Conn.Close() }
