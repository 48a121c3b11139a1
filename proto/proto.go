// Package proto is the wire: every number of the NBD protocol once, with its
// name and its type, and one codec for each message.
//
// # Concepts
//
// An NBD connection has two phases. In the handshake, client and server settle
// which export is used and how: the server greets with its [HandshakeFlags],
// the client answers with its [ClientFlags], and then the client sends one
// [Option] after the other ("option haggling"), each answered by replies whose
// kind is an [OptionReply]. An option that the server accepts as the last one
// ([OptGo] or [OptExportName]) leads into the second phase, transmission.
//
// In the transmission phase the client sends requests (a [Command] with
// [CommandFlags], a cookie that the server hands back, an offset and a length)
// and the server answers, in any order, in one of three styles:
//
//   - simple replies: a 16-byte header with an [Errno], and for a read the data;
//   - structured replies: one or more chunks, each with a [ChunkType];
//   - extended replies: the same chunks behind 32-byte headers, with 64-bit
//     lengths both ways.
//
// # Form
//
// The package is pure: bytes in, structs out, and back. Functions named Append…
// append a message to a slice and return it, functions named Parse… read one
// and never keep a reference to their argument unless their comment says so.
// Nothing here does I/O, logs, or takes memory because a length says so: a
// length is first checked against the bytes at hand and the limits of the
// specification. All integers on the wire are big-endian.
//
// Section names in comments are headings of the protocol's specification,
// proto.md, and of its extension for extended headers.
package proto

import "errors"

// Magic numbers. proto.md, "Newstyle negotiation", "Transmission".
const (
	MagicInit            uint64 = 0x4e42444d41474943 // "NBDMAGIC", the first word of every server
	MagicOldstyle        uint64 = 0x00420281861253   // follows MagicInit in oldstyle negotiation
	MagicOption          uint64 = 0x49484156454f5054 // "IHAVEOPT", follows MagicInit in newstyle, and begins each option
	MagicOptionReply     uint64 = 0x0003e889045565a9
	MagicRequest         uint32 = 0x25609513
	MagicSimpleReply     uint32 = 0x67446698
	MagicStructuredReply uint32 = 0x668e33ef
	MagicExtendedRequest uint32 = 0x21e41c71
	MagicExtendedReply   uint32 = 0x6e8a278c
)

// Sizes of fixed messages, in bytes.
const (
	GreetingSize          = 18  // MagicInit, MagicOption, handshake flags
	ClientFlagsSize       = 4   // the client's answer to the greeting
	OptionHeaderSize      = 16  // MagicOption, option, length
	OptionReplyHeaderSize = 20  // MagicOptionReply, option, reply type, length
	ExportNameReplySize   = 10  // size, transmission flags
	ExportNamePadding     = 124 // zero bytes after it, unless NO_ZEROES was agreed
	RequestSize           = 28
	ExtendedRequestSize   = 32
	SimpleReplySize       = 16
	StructuredReplySize   = 20
	ExtendedReplySize     = 32
)

// Limits.
const (
	// MaxString bounds every string. proto.md, "Conventions".
	MaxString = 4096
	// MaxExtents bounds the descriptors of one block status chunk.
	// proto.md, "Structured reply types".
	MaxExtents = 1 << 20
	// DefaultMaxPayload is what a peer may rely on when no maximum payload was
	// told: 32 MiB. proto.md, "Size constraints".
	DefaultMaxPayload = 1 << 25
	// MaxMinBlock is the largest minimum block size that may be advertised.
	MaxMinBlock = 1 << 16
	// DFAlwaysServed is the length up to which a read with [CmdFlagDF] must be
	// served unfragmented. proto.md, "Request types", NBD_CMD_READ.
	DFAlwaysServed = 1 << 16
	// DefaultPort is NBD's port as assigned by IANA.
	DefaultPort = 10809
)

// ErrMalformed is wrapped by every error of a Parse function.
var ErrMalformed = errors.New("malformed message")
