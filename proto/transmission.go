package proto

import (
	"encoding/binary"
	"fmt"
	"unicode/utf8"
)

// Request is the header of a request, compact or extended.
// proto.md, "Request message"; extension, "Extended request message".
type Request struct {
	Flags   CommandFlags
	Command Command
	Cookie  uint64
	Offset  uint64 // bytes from the start of the export
	Length  uint64 // bytes: of the payload, or of the effect
}

// Payload returns how many bytes follow the header on the wire.
func (r *Request) Payload(extended bool) uint64 {
	if extended && r.Flags&CmdFlagPayloadLen != 0 || !extended && r.Command == CmdWrite {
		return r.Length
	}
	return 0
}

// AppendRequest appends r in compact form. The length must fit into 32 bits.
func AppendRequest(b []byte, r *Request) []byte {
	b = binary.BigEndian.AppendUint32(b, MagicRequest)
	b = appendRequestMiddle(b, r)
	return binary.BigEndian.AppendUint32(b, uint32(r.Length))
}

// AppendExtendedRequest appends r in extended form.
func AppendExtendedRequest(b []byte, r *Request) []byte {
	b = binary.BigEndian.AppendUint32(b, MagicExtendedRequest)
	b = appendRequestMiddle(b, r)
	return binary.BigEndian.AppendUint64(b, r.Length)
}

func appendRequestMiddle(b []byte, r *Request) []byte {
	b = binary.BigEndian.AppendUint16(b, uint16(r.Flags))
	b = binary.BigEndian.AppendUint16(b, uint16(r.Command))
	b = binary.BigEndian.AppendUint64(b, r.Cookie)
	return binary.BigEndian.AppendUint64(b, r.Offset)
}

// ParseRequest reads a compact request from the first [RequestSize] bytes of b,
// which must be there. It reports false if the magic number is wrong.
func ParseRequest(b []byte, r *Request) bool {
	_ = b[RequestSize-1]
	parseRequestMiddle(b, r)
	r.Length = uint64(binary.BigEndian.Uint32(b[24:]))
	return binary.BigEndian.Uint32(b) == MagicRequest
}

// ParseExtendedRequest is ParseRequest for [ExtendedRequestSize] bytes.
func ParseExtendedRequest(b []byte, r *Request) bool {
	_ = b[ExtendedRequestSize-1]
	parseRequestMiddle(b, r)
	r.Length = binary.BigEndian.Uint64(b[24:])
	return binary.BigEndian.Uint32(b) == MagicExtendedRequest
}

func parseRequestMiddle(b []byte, r *Request) {
	r.Flags = CommandFlags(binary.BigEndian.Uint16(b[4:]))
	r.Command = Command(binary.BigEndian.Uint16(b[6:]))
	r.Cookie = binary.BigEndian.Uint64(b[8:])
	r.Offset = binary.BigEndian.Uint64(b[16:])
}

// AppendSimpleReply appends the header of a simple reply.
// proto.md, "Simple reply message".
func AppendSimpleReply(b []byte, e Errno, cookie uint64) []byte {
	b = binary.BigEndian.AppendUint32(b, MagicSimpleReply)
	b = binary.BigEndian.AppendUint32(b, uint32(e))
	return binary.BigEndian.AppendUint64(b, cookie)
}

// SimpleReply is the header of a simple reply.
type SimpleReply struct {
	Error  Errno
	Cookie uint64
}

// ParseSimpleReply reads the first [SimpleReplySize] bytes of b, which must be
// there. It reports false if the magic number is wrong.
func ParseSimpleReply(b []byte, r *SimpleReply) bool {
	_ = b[SimpleReplySize-1]
	r.Error = Errno(binary.BigEndian.Uint32(b[4:]))
	r.Cookie = binary.BigEndian.Uint64(b[8:])
	return binary.BigEndian.Uint32(b) == MagicSimpleReply
}

// Chunk is the header of a structured or extended reply chunk.
// proto.md, "Structured reply chunk message"; extension, "Extended reply chunk message".
type Chunk struct {
	Flags  ReplyFlags
	Type   ChunkType
	Cookie uint64
	Offset uint64 // of the request; extended replies only
	Length uint64 // bytes of payload that follow
}

// AppendChunk appends c as the header of a structured reply chunk.
func AppendChunk(b []byte, c *Chunk) []byte {
	b = binary.BigEndian.AppendUint32(b, MagicStructuredReply)
	b = binary.BigEndian.AppendUint16(b, uint16(c.Flags))
	b = binary.BigEndian.AppendUint16(b, uint16(c.Type))
	b = binary.BigEndian.AppendUint64(b, c.Cookie)
	return binary.BigEndian.AppendUint32(b, uint32(c.Length))
}

// AppendExtendedChunk appends c as the header of an extended reply chunk.
func AppendExtendedChunk(b []byte, c *Chunk) []byte {
	b = binary.BigEndian.AppendUint32(b, MagicExtendedReply)
	b = binary.BigEndian.AppendUint16(b, uint16(c.Flags))
	b = binary.BigEndian.AppendUint16(b, uint16(c.Type))
	b = binary.BigEndian.AppendUint64(b, c.Cookie)
	b = binary.BigEndian.AppendUint64(b, c.Offset)
	return binary.BigEndian.AppendUint64(b, c.Length)
}

// ParseChunk reads the first [StructuredReplySize] bytes of b, which must be
// there. It reports false if the magic number is wrong.
func ParseChunk(b []byte, c *Chunk) bool {
	_ = b[StructuredReplySize-1]
	c.Flags = ReplyFlags(binary.BigEndian.Uint16(b[4:]))
	c.Type = ChunkType(binary.BigEndian.Uint16(b[6:]))
	c.Cookie = binary.BigEndian.Uint64(b[8:])
	c.Offset = 0
	c.Length = uint64(binary.BigEndian.Uint32(b[16:]))
	return binary.BigEndian.Uint32(b) == MagicStructuredReply
}

// ParseExtendedChunk is ParseChunk for [ExtendedReplySize] bytes.
func ParseExtendedChunk(b []byte, c *Chunk) bool {
	_ = b[ExtendedReplySize-1]
	c.Flags = ReplyFlags(binary.BigEndian.Uint16(b[4:]))
	c.Type = ChunkType(binary.BigEndian.Uint16(b[6:]))
	c.Cookie = binary.BigEndian.Uint64(b[8:])
	c.Offset = binary.BigEndian.Uint64(b[16:])
	c.Length = binary.BigEndian.Uint64(b[24:])
	return binary.BigEndian.Uint32(b) == MagicExtendedReply
}

// AppendHole appends the payload of a [ChunkOffsetHole].
func AppendHole(b []byte, offset uint64, size uint32) []byte {
	b = binary.BigEndian.AppendUint64(b, offset)
	return binary.BigEndian.AppendUint32(b, size)
}

// HoleSize is the length of the payload of a [ChunkOffsetHole].
const HoleSize = 12

// ParseHole reads the payload of a [ChunkOffsetHole].
func ParseHole(b []byte) (offset uint64, size uint32, err error) {
	if len(b) != HoleSize {
		return 0, 0, fmt.Errorf("%w: a hole chunk of %d bytes, not %d", ErrMalformed, len(b), HoleSize)
	}
	offset, size = binary.BigEndian.Uint64(b), binary.BigEndian.Uint32(b[8:])
	if size == 0 {
		return 0, 0, fmt.Errorf("%w: a hole of no bytes", ErrMalformed)
	}
	return offset, size, nil
}

// ErrorPayload is the payload of an error chunk.
type ErrorPayload struct {
	Error   Errno
	Message string
	Offset  uint64 // [ChunkErrorOffset] only
}

// AppendErrorPayload appends p as the payload of a chunk of type t. A message
// longer than [MaxString] is cut, between two characters: it must stay UTF-8.
func AppendErrorPayload(b []byte, t ChunkType, p *ErrorPayload) []byte {
	m := p.Message
	if len(m) > MaxString {
		n := MaxString
		for n > MaxString-utf8.UTFMax && !utf8.RuneStart(m[n]) {
			n--
		}
		m = m[:n]
	}
	b = binary.BigEndian.AppendUint32(b, uint32(p.Error))
	b = binary.BigEndian.AppendUint16(b, uint16(len(m)))
	b = append(b, m...)
	if t == ChunkErrorOffset {
		b = binary.BigEndian.AppendUint64(b, p.Offset)
	}
	return b
}

// ParseErrorPayload reads the payload of an error chunk of type t, which may be
// an unknown one: then what follows the message is ignored.
func ParseErrorPayload(b []byte, t ChunkType) (ErrorPayload, error) {
	if len(b) < 6 {
		return ErrorPayload{}, fmt.Errorf("%w: an error chunk of %d bytes", ErrMalformed, len(b))
	}
	p := ErrorPayload{Error: Errno(binary.BigEndian.Uint32(b))}
	n := int(binary.BigEndian.Uint16(b[4:]))
	b = b[6:]
	if n > len(b) || n > MaxString {
		return p, fmt.Errorf("%w: an error message of %d bytes in the %d left of its chunk", ErrMalformed, n, len(b))
	}
	p.Message, b = string(b[:n]), b[n:]
	if t == ChunkErrorOffset {
		if len(b) < 8 {
			return p, fmt.Errorf("%w: an error chunk without its offset", ErrMalformed)
		}
		p.Offset = binary.BigEndian.Uint64(b)
	}
	if p.Error == OK {
		return p, fmt.Errorf("%w: an error chunk with error 0", ErrMalformed)
	}
	return p, nil
}

// Extent is one descriptor of a block status chunk.
type Extent struct {
	Length uint64 // bytes
	Status uint64 // as the metadata context defines it
}

// AppendBlockStatus appends the payload of a [ChunkBlockStatus]. Lengths and
// states must fit into 32 bits.
func AppendBlockStatus(b []byte, context uint32, extents []Extent) []byte {
	b = binary.BigEndian.AppendUint32(b, context)
	for _, e := range extents {
		b = binary.BigEndian.AppendUint32(b, uint32(e.Length))
		b = binary.BigEndian.AppendUint32(b, uint32(e.Status))
	}
	return b
}

// AppendBlockStatusExt appends the payload of a [ChunkBlockStatusExt].
func AppendBlockStatusExt(b []byte, context uint32, extents []Extent) []byte {
	b = binary.BigEndian.AppendUint32(b, context)
	b = binary.BigEndian.AppendUint32(b, uint32(len(extents)))
	for _, e := range extents {
		b = binary.BigEndian.AppendUint64(b, e.Length)
		b = binary.BigEndian.AppendUint64(b, e.Status)
	}
	return b
}

// ParseBlockStatus reads the payload of a [ChunkBlockStatus] or a
// [ChunkBlockStatusExt], appending its extents to ext.
func ParseBlockStatus(b []byte, t ChunkType, ext []Extent) (context uint32, _ []Extent, err error) {
	head, each := 4, 8
	if t == ChunkBlockStatusExt {
		head, each = 8, 16
	}
	if len(b) < head+each || (len(b)-head)%each != 0 {
		return 0, ext, fmt.Errorf("%w: a block status chunk of %d bytes", ErrMalformed, len(b))
	}
	context = binary.BigEndian.Uint32(b)
	count := (len(b) - head) / each
	if t == ChunkBlockStatusExt && binary.BigEndian.Uint32(b[4:]) != uint32(count) {
		return 0, ext, fmt.Errorf("%w: a block status chunk that counts %d descriptors and has %d", ErrMalformed, binary.BigEndian.Uint32(b[4:]), count)
	}
	for b = b[head:]; len(b) > 0; b = b[each:] {
		e := Extent{Length: uint64(binary.BigEndian.Uint32(b)), Status: uint64(binary.BigEndian.Uint32(b[4:]))}
		if t == ChunkBlockStatusExt {
			e = Extent{Length: binary.BigEndian.Uint64(b), Status: binary.BigEndian.Uint64(b[8:])}
		}
		if e.Length == 0 {
			return 0, ext, fmt.Errorf("%w: an extent of no bytes", ErrMalformed)
		}
		ext = append(ext, e)
	}
	return context, ext, nil
}

// StatusFilter is the payload of a block status request that asks for some of
// the chosen contexts only. Extension, NBD_CMD_BLOCK_STATUS.
type StatusFilter struct {
	Length   uint64 // the effect length
	Contexts []uint32
}

// AppendStatusFilter appends f.
func AppendStatusFilter(b []byte, f *StatusFilter) []byte {
	b = binary.BigEndian.AppendUint64(b, f.Length)
	for _, id := range f.Contexts {
		b = binary.BigEndian.AppendUint32(b, id)
	}
	return b
}

// ParseStatusFilter reads a filter of at most max contexts.
func ParseStatusFilter(b []byte, max int) (StatusFilter, error) {
	if len(b) < 8 || (len(b)-8)%4 != 0 || (len(b)-8)/4 > max {
		return StatusFilter{}, fmt.Errorf("%w: a block status filter of %d bytes", ErrMalformed, len(b))
	}
	f := StatusFilter{Length: binary.BigEndian.Uint64(b)}
	for b = b[8:]; len(b) > 0; b = b[4:] {
		f.Contexts = append(f.Contexts, binary.BigEndian.Uint32(b))
	}
	return f, nil
}
