package proto

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"unicode/utf8"
)

// AppendGreeting appends the server's first message.
func AppendGreeting(b []byte, f HandshakeFlags) []byte {
	b = binary.BigEndian.AppendUint64(b, MagicInit)
	b = binary.BigEndian.AppendUint64(b, MagicOption)
	return binary.BigEndian.AppendUint16(b, uint16(f))
}

// ParseGreeting reads a greeting of [GreetingSize] bytes. An oldstyle server's
// greeting is an error of its own, [ErrOldstyle].
func ParseGreeting(b []byte) (HandshakeFlags, error) {
	if len(b) < GreetingSize || binary.BigEndian.Uint64(b) != MagicInit {
		return 0, fmt.Errorf("%w: the greeting is not that of an NBD server", ErrMalformed)
	}
	switch binary.BigEndian.Uint64(b[8:]) {
	case MagicOption:
		return HandshakeFlags(binary.BigEndian.Uint16(b[16:])), nil
	case MagicOldstyle:
		return 0, ErrOldstyle
	}
	return 0, fmt.Errorf("%w: the greeting is not that of an NBD server", ErrMalformed)
}

// ErrOldstyle is returned for a server that speaks oldstyle negotiation.
var ErrOldstyle = fmt.Errorf("%w: the server speaks oldstyle negotiation", ErrMalformed)

// AppendClientFlags appends the client's answer to the greeting.
func AppendClientFlags(b []byte, f ClientFlags) []byte {
	return binary.BigEndian.AppendUint32(b, uint32(f))
}

// ParseClientFlags reads [ClientFlagsSize] bytes, which must be there.
func ParseClientFlags(b []byte) ClientFlags { return ClientFlags(binary.BigEndian.Uint32(b)) }

// OptionHeader precedes an option's data.
type OptionHeader struct {
	Option Option
	Length uint32 // bytes of data that follow
}

// AppendOption appends an option with its data.
func AppendOption(b []byte, o Option, data []byte) []byte {
	b = binary.BigEndian.AppendUint64(b, MagicOption)
	b = binary.BigEndian.AppendUint32(b, uint32(o))
	b = binary.BigEndian.AppendUint32(b, uint32(len(data)))
	return append(b, data...)
}

// ParseOptionHeader reads [OptionHeaderSize] bytes, which must be there.
func ParseOptionHeader(b []byte) (OptionHeader, error) {
	if binary.BigEndian.Uint64(b) != MagicOption {
		return OptionHeader{}, fmt.Errorf("%w: an option that does not begin with IHAVEOPT", ErrMalformed)
	}
	return OptionHeader{Option(binary.BigEndian.Uint32(b[8:])), binary.BigEndian.Uint32(b[12:])}, nil
}

// OptionReplyHeader precedes the data of a reply to an option.
type OptionReplyHeader struct {
	Option Option
	Reply  OptionReply
	Length uint32 // bytes of data that follow
}

// AppendOptionReply appends a reply with its data.
func AppendOptionReply(b []byte, o Option, r OptionReply, data []byte) []byte {
	b = binary.BigEndian.AppendUint64(b, MagicOptionReply)
	b = binary.BigEndian.AppendUint32(b, uint32(o))
	b = binary.BigEndian.AppendUint32(b, uint32(r))
	b = binary.BigEndian.AppendUint32(b, uint32(len(data)))
	return append(b, data...)
}

// ParseOptionReplyHeader reads [OptionReplyHeaderSize] bytes, which must be there.
func ParseOptionReplyHeader(b []byte) (OptionReplyHeader, error) {
	if binary.BigEndian.Uint64(b) != MagicOptionReply {
		return OptionReplyHeader{}, fmt.Errorf("%w: a reply to an option with a wrong magic number", ErrMalformed)
	}
	return OptionReplyHeader{
		Option: Option(binary.BigEndian.Uint32(b[8:])),
		Reply:  OptionReply(binary.BigEndian.Uint32(b[12:])),
		Length: binary.BigEndian.Uint32(b[16:]),
	}, nil
}

// ExportReply is what [OptExportName] is answered with, and the payload of [InfoExport].
type ExportReply struct {
	Size  uint64 // bytes
	Flags TransmissionFlags
}

// AppendExportReply appends the answer to [OptExportName] without its padding.
func AppendExportReply(b []byte, e ExportReply) []byte {
	b = binary.BigEndian.AppendUint64(b, e.Size)
	return binary.BigEndian.AppendUint16(b, uint16(e.Flags))
}

// ParseExportReply reads [ExportNameReplySize] bytes, which must be there.
func ParseExportReply(b []byte) ExportReply {
	return ExportReply{binary.BigEndian.Uint64(b), TransmissionFlags(binary.BigEndian.Uint16(b[8:]))}
}

// CheckString says what is wrong with s as a string of the protocol.
// proto.md, "Conventions".
func CheckString(s []byte) error {
	switch {
	case len(s) > MaxString:
		return fmt.Errorf("%w: a string of %d bytes, over the limit of %d", ErrMalformed, len(s), MaxString)
	case bytes.IndexByte(s, 0) >= 0:
		return fmt.Errorf("%w: a string with a NUL", ErrMalformed)
	case !utf8.Valid(s):
		return fmt.Errorf("%w: a string that is not UTF-8", ErrMalformed)
	}
	return nil
}

// InfoRequest is the data of [OptInfo] and [OptGo].
type InfoRequest struct {
	Export   string
	Requests []Info
}

// AppendInfoRequest appends r.
func AppendInfoRequest(b []byte, r *InfoRequest) []byte {
	b = appendString32(b, r.Export)
	b = binary.BigEndian.AppendUint16(b, uint16(len(r.Requests)))
	for _, i := range r.Requests {
		b = binary.BigEndian.AppendUint16(b, uint16(i))
	}
	return b
}

// ParseInfoRequest reads the whole of b.
func ParseInfoRequest(b []byte) (InfoRequest, error) {
	name, b, err := parseString32(b, 2)
	if err != nil {
		return InfoRequest{}, fmt.Errorf("export name: %w", err)
	}
	r := InfoRequest{Export: name}
	n := int(binary.BigEndian.Uint16(b))
	if b = b[2:]; len(b) != 2*n {
		return r, fmt.Errorf("%w: %d information requests in %d bytes", ErrMalformed, n, len(b))
	}
	for ; len(b) > 0; b = b[2:] {
		r.Requests = append(r.Requests, Info(binary.BigEndian.Uint16(b)))
	}
	return r, nil
}

// MetaContextRequest is the data of [OptListMetaContext] and [OptSetMetaContext].
type MetaContextRequest struct {
	Export  string
	Queries []string
}

// AppendMetaContextRequest appends r.
func AppendMetaContextRequest(b []byte, r *MetaContextRequest) []byte {
	b = appendString32(b, r.Export)
	b = binary.BigEndian.AppendUint32(b, uint32(len(r.Queries)))
	for _, q := range r.Queries {
		b = appendString32(b, q)
	}
	return b
}

// ParseMetaContextRequest reads the whole of b.
func ParseMetaContextRequest(b []byte) (MetaContextRequest, error) {
	name, b, err := parseString32(b, 4)
	if err != nil {
		return MetaContextRequest{}, fmt.Errorf("export name: %w", err)
	}
	r := MetaContextRequest{Export: name}
	n := binary.BigEndian.Uint32(b)
	b = b[4:]
	for i := range n {
		var q string
		if q, b, err = parseString32(b, 0); err != nil {
			return r, fmt.Errorf("query %d of %d: %w", i+1, n, err)
		}
		r.Queries = append(r.Queries, q)
	}
	if len(b) > 0 {
		return r, fmt.Errorf("%w: %d bytes after the last query", ErrMalformed, len(b))
	}
	return r, nil
}

// ServerReply is the data of [RepServer].
type ServerReply struct{ Export, Description string }

// AppendServerReply appends r.
func AppendServerReply(b []byte, r *ServerReply) []byte {
	return append(appendString32(b, r.Export), r.Description...)
}

// ParseServerReply reads the whole of b.
func ParseServerReply(b []byte) (ServerReply, error) {
	name, b, err := parseString32(b, 0)
	if err != nil {
		return ServerReply{}, fmt.Errorf("export name: %w", err)
	}
	if err := CheckString(b); err != nil {
		return ServerReply{}, fmt.Errorf("description: %w", err)
	}
	return ServerReply{name, string(b)}, nil
}

// MetaContext is the data of [RepMetaContext].
type MetaContext struct {
	ID   uint32
	Name string
}

// AppendMetaContext appends c.
func AppendMetaContext(b []byte, c *MetaContext) []byte {
	return append(binary.BigEndian.AppendUint32(b, c.ID), c.Name...)
}

// ParseMetaContext reads the whole of b.
func ParseMetaContext(b []byte) (MetaContext, error) {
	if len(b) < 4 {
		return MetaContext{}, fmt.Errorf("%w: a metadata context of %d bytes", ErrMalformed, len(b))
	}
	if err := CheckString(b[4:]); err != nil {
		return MetaContext{}, fmt.Errorf("metadata context: %w", err)
	}
	return MetaContext{binary.BigEndian.Uint32(b), string(b[4:])}, nil
}

// BlockSize is the payload of [InfoBlockSize], in bytes. proto.md, "Size constraints".
type BlockSize struct {
	Minimum    uint32 // power of two, at most [MaxMinBlock]
	Preferred  uint32 // power of two, at least 512 and Minimum
	MaxPayload uint32 // at least Preferred
}

// DefaultBlockSize holds for a server that told nothing.
var DefaultBlockSize = BlockSize{1, 4096, DefaultMaxPayload}

// Check says which rule of "Size constraints" s breaks.
func (s BlockSize) Check() error {
	pow2 := func(v uint32) bool { return v != 0 && v&(v-1) == 0 }
	switch {
	case !pow2(s.Minimum) || s.Minimum > MaxMinBlock:
		return fmt.Errorf("%w: minimum block size %d is not a power of two up to %d", ErrMalformed, s.Minimum, MaxMinBlock)
	case !pow2(s.Preferred) || s.Preferred < max(s.Minimum, 512):
		return fmt.Errorf("%w: preferred block size %d is not a power of two from %d", ErrMalformed, s.Preferred, max(s.Minimum, 512))
	case s.MaxPayload < s.Preferred:
		return fmt.Errorf("%w: maximum payload %d is below the preferred block size %d", ErrMalformed, s.MaxPayload, s.Preferred)
	}
	return nil
}

// AppendInfoExport appends the data of a [RepInfo] of type [InfoExport].
func AppendInfoExport(b []byte, e ExportReply) []byte {
	return AppendExportReply(binary.BigEndian.AppendUint16(b, uint16(InfoExport)), e)
}

// AppendInfoString appends the data of a [RepInfo] of type [InfoName] or [InfoDescription].
func AppendInfoString(b []byte, i Info, s string) []byte {
	return append(binary.BigEndian.AppendUint16(b, uint16(i)), s...)
}

// AppendInfoBlockSize appends the data of a [RepInfo] of type [InfoBlockSize].
func AppendInfoBlockSize(b []byte, s BlockSize) []byte {
	b = binary.BigEndian.AppendUint16(b, uint16(InfoBlockSize))
	b = binary.BigEndian.AppendUint32(b, s.Minimum)
	b = binary.BigEndian.AppendUint32(b, s.Preferred)
	return binary.BigEndian.AppendUint32(b, s.MaxPayload)
}

// InfoReply is the data of a [RepInfo]; which field is set, Type tells. For an
// unknown type none is.
type InfoReply struct {
	Type      Info
	Export    ExportReply
	Text      string // name or description
	BlockSize BlockSize
}

// ParseInfoReply reads the whole of b.
func ParseInfoReply(b []byte) (InfoReply, error) {
	if len(b) < 2 {
		return InfoReply{}, fmt.Errorf("%w: an information reply of %d bytes", ErrMalformed, len(b))
	}
	r := InfoReply{Type: Info(binary.BigEndian.Uint16(b))}
	b = b[2:]
	switch r.Type {
	case InfoExport:
		if len(b) != ExportNameReplySize {
			return r, fmt.Errorf("%w: NBD_INFO_EXPORT of %d bytes", ErrMalformed, len(b)+2)
		}
		r.Export = ParseExportReply(b)
	case InfoName, InfoDescription:
		if err := CheckString(b); err != nil {
			return r, err
		}
		r.Text = string(b)
	case InfoBlockSize:
		if len(b) != 12 {
			return r, fmt.Errorf("%w: NBD_INFO_BLOCK_SIZE of %d bytes", ErrMalformed, len(b)+2)
		}
		r.BlockSize = BlockSize{binary.BigEndian.Uint32(b), binary.BigEndian.Uint32(b[4:]), binary.BigEndian.Uint32(b[8:])}
		return r, r.BlockSize.Check()
	}
	return r, nil
}

func appendString32(b []byte, s string) []byte {
	return append(binary.BigEndian.AppendUint32(b, uint32(len(s))), s...)
}

// parseString32 reads a string behind its 32-bit length, and demands that at
// least rest bytes follow it.
func parseString32(b []byte, rest int) (string, []byte, error) {
	if len(b) < 4+rest {
		return "", nil, fmt.Errorf("%w: %d bytes where a string should be", ErrMalformed, len(b))
	}
	n := binary.BigEndian.Uint32(b)
	if uint64(n) > uint64(len(b)-4-rest) {
		return "", nil, fmt.Errorf("%w: a string of %d bytes in %d bytes of data", ErrMalformed, n, len(b))
	}
	s := b[4 : 4+n]
	return string(s), b[4+n:], CheckString(s)
}
