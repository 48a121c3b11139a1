package proto

// HandshakeFlags are sent by the server in its greeting.
// proto.md, "Handshake flags".
type HandshakeFlags uint16

// Handshake flags.
const (
	FlagFixedNewstyle HandshakeFlags = 1 << 0 // NBD_FLAG_FIXED_NEWSTYLE
	FlagNoZeroes      HandshakeFlags = 1 << 1 // NBD_FLAG_NO_ZEROES
)

// ClientFlags are the client's answer to the greeting. proto.md, "Client flags".
type ClientFlags uint32

// Client flags.
const (
	ClientFixedNewstyle ClientFlags = 1 << 0 // NBD_FLAG_C_FIXED_NEWSTYLE
	ClientNoZeroes      ClientFlags = 1 << 1 // NBD_FLAG_C_NO_ZEROES
)

// TransmissionFlags say what an export offers. proto.md, "Transmission flags".
type TransmissionFlags uint16

// Transmission flags.
const (
	FlagHasFlags           TransmissionFlags = 1 << 0
	FlagReadOnly           TransmissionFlags = 1 << 1
	FlagSendFlush          TransmissionFlags = 1 << 2
	FlagSendFUA            TransmissionFlags = 1 << 3
	FlagRotational         TransmissionFlags = 1 << 4
	FlagSendTrim           TransmissionFlags = 1 << 5
	FlagSendWriteZeroes    TransmissionFlags = 1 << 6
	FlagSendDF             TransmissionFlags = 1 << 7
	FlagCanMultiConn       TransmissionFlags = 1 << 8
	FlagSendResize         TransmissionFlags = 1 << 9 // reserved for an extension that nobody implements
	FlagSendCache          TransmissionFlags = 1 << 10
	FlagSendFastZero       TransmissionFlags = 1 << 11
	FlagBlockStatusPayload TransmissionFlags = 1 << 12
)

// Option is what a client asks for during option haggling.
// proto.md, "Option types".
type Option uint32

// Options.
const (
	OptExportName      Option = 1
	OptAbort           Option = 2
	OptList            Option = 3
	OptPeekExport      Option = 4 // withdrawn, not in use
	OptStartTLS        Option = 5
	OptInfo            Option = 6
	OptGo              Option = 7
	OptStructuredReply Option = 8
	OptListMetaContext Option = 9
	OptSetMetaContext  Option = 10
	OptExtendedHeaders Option = 11
)

// OptionReply is the kind of a reply to an option. proto.md, "Option reply types".
type OptionReply uint32

// RepError is the bit that all error replies have set.
const RepError OptionReply = 1 << 31

// Option replies.
const (
	RepAck         OptionReply = 1
	RepServer      OptionReply = 2
	RepInfo        OptionReply = 3
	RepMetaContext OptionReply = 4

	RepErrUnsup         OptionReply = RepError + 1
	RepErrPolicy        OptionReply = RepError + 2
	RepErrInvalid       OptionReply = RepError + 3
	RepErrPlatform      OptionReply = RepError + 4
	RepErrTLSReqd       OptionReply = RepError + 5
	RepErrUnknown       OptionReply = RepError + 6
	RepErrShutdown      OptionReply = RepError + 7
	RepErrBlockSizeReqd OptionReply = RepError + 8
	RepErrTooBig        OptionReply = RepError + 9
	RepErrExtHeaderReqd OptionReply = RepError + 10
)

// IsError reports whether r refuses its option.
func (r OptionReply) IsError() bool { return r&RepError != 0 }

// Info is a kind of information about an export. proto.md, NBD_REP_INFO.
type Info uint16

// Information types.
const (
	InfoExport      Info = 0
	InfoName        Info = 1
	InfoDescription Info = 2
	InfoBlockSize   Info = 3
)

// Command is a request of the transmission phase. proto.md, "Request types".
type Command uint16

// Commands.
const (
	CmdRead        Command = 0
	CmdWrite       Command = 1
	CmdDisc        Command = 2
	CmdFlush       Command = 3
	CmdTrim        Command = 4
	CmdCache       Command = 5
	CmdWriteZeroes Command = 6
	CmdBlockStatus Command = 7
	CmdResize      Command = 8 // reserved for an extension that nobody implements
)

// CommandFlags modify a command. proto.md, "Command flags".
type CommandFlags uint16

// Command flags.
const (
	CmdFlagFUA        CommandFlags = 1 << 0
	CmdFlagNoHole     CommandFlags = 1 << 1
	CmdFlagDF         CommandFlags = 1 << 2
	CmdFlagReqOne     CommandFlags = 1 << 3
	CmdFlagFastZero   CommandFlags = 1 << 4
	CmdFlagPayloadLen CommandFlags = 1 << 5
)

// ReplyFlags are flags of a chunk. proto.md, "Structured reply flags".
type ReplyFlags uint16

// ReplyFlagDone marks the last chunk of a reply.
const ReplyFlagDone ReplyFlags = 1 << 0

// ChunkType is the kind of a structured or extended reply chunk.
// proto.md, "Structured reply types".
type ChunkType uint16

// ChunkError is the bit that all error chunks have set.
const ChunkError ChunkType = 1 << 15

// Chunk types.
const (
	ChunkNone           ChunkType = 0
	ChunkOffsetData     ChunkType = 1
	ChunkOffsetHole     ChunkType = 2
	ChunkBlockStatus    ChunkType = 5
	ChunkBlockStatusExt ChunkType = 6
	ChunkErrorPlain     ChunkType = ChunkError + 1 // NBD_REPLY_TYPE_ERROR
	ChunkErrorOffset    ChunkType = ChunkError + 2
)

// IsError reports whether t belongs to a failed request.
func (t ChunkType) IsError() bool { return t&ChunkError != 0 }

// Errno is one of the eight error numbers that the protocol allows.
// proto.md, "Error values".
type Errno uint32

// Error values. Zero is success.
const (
	OK        Errno = 0
	EPERM     Errno = 1
	EIO       Errno = 5
	ENOMEM    Errno = 12
	EINVAL    Errno = 22
	ENOSPC    Errno = 28
	EOVERFLOW Errno = 75
	ENOTSUP   Errno = 95
	ESHUTDOWN Errno = 108
)

// State is the status of an extent in the context base:allocation.
// proto.md, "base:allocation metadata context".
type State uint32

// States. Both bits clear: allocated, contents unknown.
const (
	StateHole State = 1 << 0
	StateZero State = 1 << 1
)

// ContextBaseAllocation is the one metadata context that the specification defines.
const ContextBaseAllocation = "base:allocation"

// ContextAllocationDepth is QEMU's context: 0 unallocated, 1 allocated in the
// topmost layer, n in the n-th layer from the top.
const ContextAllocationDepth = "qemu:allocation-depth"

// ContextInstance is the prefix of a context of our own. The rest of its name
// names the instance of the export's contents, so that a client that comes back
// can tell whether it finds the disk that it left: it lists "x-nbd-instance:"
// and compares, or selects the full name and sees whether it is still there.
// The status of every extent is 0.
const ContextInstance = "x-nbd-instance:"
