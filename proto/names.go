package proto

import (
	"fmt"
	"strings"
)

// String returns the specification's name.
func (o Option) String() string { return name(optionNames, o, "NBD_OPT") }

// String returns the specification's name.
func (r OptionReply) String() string { return name(replyNames, r, "NBD_REP") }

// String returns the specification's name.
func (i Info) String() string { return name(infoNames, i, "NBD_INFO") }

// String returns the specification's name.
func (c Command) String() string { return name(commandNames, c, "NBD_CMD") }

// String returns the specification's name.
func (t ChunkType) String() string { return name(chunkNames, t, "NBD_REPLY_TYPE") }

// String returns the specification's name.
func (e Errno) String() string { return name(errnoNames, e, "NBD_E") }

// Error makes an Errno an error. [OK] must not be used as one.
func (e Errno) Error() string { return e.String() }

// String lists the specification's names.
func (f HandshakeFlags) String() string { return flagNames("NBD_FLAG_", f, handshakeFlagNames) }

// String lists the specification's names.
func (f ClientFlags) String() string { return flagNames("NBD_FLAG_C_", f, handshakeFlagNames) }

// String lists the specification's names.
func (f TransmissionFlags) String() string {
	return flagNames("NBD_FLAG_", f, transmissionFlagNames)
}

// String lists the specification's names.
func (f CommandFlags) String() string {
	return flagNames("NBD_CMD_FLAG_", f, commandFlagNames)
}

// String lists the specification's names.
func (f ReplyFlags) String() string { return flagNames("NBD_REPLY_FLAG_", f, replyFlagNames) }

// String lists the specification's names.
func (s State) String() string { return flagNames("NBD_STATE_", s, stateNames) }

// The names of flags, from bit 0 on.
var (
	handshakeFlagNames    = strings.Fields("FIXED_NEWSTYLE NO_ZEROES")
	transmissionFlagNames = strings.Fields("HAS_FLAGS READ_ONLY SEND_FLUSH SEND_FUA ROTATIONAL SEND_TRIM SEND_WRITE_ZEROES SEND_DF CAN_MULTI_CONN SEND_RESIZE SEND_CACHE SEND_FAST_ZERO BLOCK_STATUS_PAYLOAD")
	commandFlagNames      = strings.Fields("FUA NO_HOLE DF REQ_ONE FAST_ZERO PAYLOAD_LEN")
	replyFlagNames        = strings.Fields("DONE")
	stateNames            = strings.Fields("HOLE ZERO")
)

var optionNames = map[Option]string{
	OptExportName: "EXPORT_NAME", OptAbort: "ABORT", OptList: "LIST", OptPeekExport: "PEEK_EXPORT",
	OptStartTLS: "STARTTLS", OptInfo: "INFO", OptGo: "GO", OptStructuredReply: "STRUCTURED_REPLY",
	OptListMetaContext: "LIST_META_CONTEXT", OptSetMetaContext: "SET_META_CONTEXT", OptExtendedHeaders: "EXTENDED_HEADERS",
}

var replyNames = map[OptionReply]string{
	RepAck: "ACK", RepServer: "SERVER", RepInfo: "INFO", RepMetaContext: "META_CONTEXT",
	RepErrUnsup: "ERR_UNSUP", RepErrPolicy: "ERR_POLICY", RepErrInvalid: "ERR_INVALID", RepErrPlatform: "ERR_PLATFORM",
	RepErrTLSReqd: "ERR_TLS_REQD", RepErrUnknown: "ERR_UNKNOWN", RepErrShutdown: "ERR_SHUTDOWN",
	RepErrBlockSizeReqd: "ERR_BLOCK_SIZE_REQD", RepErrTooBig: "ERR_TOO_BIG", RepErrExtHeaderReqd: "ERR_EXT_HEADER_REQD",
}

var infoNames = map[Info]string{InfoExport: "EXPORT", InfoName: "NAME", InfoDescription: "DESCRIPTION", InfoBlockSize: "BLOCK_SIZE"}

var commandNames = map[Command]string{
	CmdRead: "READ", CmdWrite: "WRITE", CmdDisc: "DISC", CmdFlush: "FLUSH", CmdTrim: "TRIM", CmdCache: "CACHE",
	CmdWriteZeroes: "WRITE_ZEROES", CmdBlockStatus: "BLOCK_STATUS", CmdResize: "RESIZE",
}

var chunkNames = map[ChunkType]string{
	ChunkNone: "NONE", ChunkOffsetData: "OFFSET_DATA", ChunkOffsetHole: "OFFSET_HOLE", ChunkBlockStatus: "BLOCK_STATUS",
	ChunkBlockStatusExt: "BLOCK_STATUS_EXT", ChunkErrorPlain: "ERROR", ChunkErrorOffset: "ERROR_OFFSET",
}

var errnoNames = map[Errno]string{
	OK: "OK", EPERM: "PERM", EIO: "IO", ENOMEM: "NOMEM", EINVAL: "INVAL", ENOSPC: "NOSPC",
	EOVERFLOW: "OVERFLOW", ENOTSUP: "NOTSUP", ESHUTDOWN: "SHUTDOWN",
}

func name[T ~uint16 | ~uint32](names map[T]string, v T, prefix string) string {
	n, known := names[v]
	switch {
	case !known && prefix == "NBD_E":
		return fmt.Sprintf("NBD_E(%d)", uint32(v))
	case !known:
		return fmt.Sprintf("%s(%#x)", prefix, uint32(v)) // as a number: %x of v would ask String again
	case prefix == "NBD_E" && v == 0:
		return n
	case prefix == "NBD_E":
		return prefix + n
	}
	return prefix + "_" + n
}

func flagNames[T ~uint16 | ~uint32](prefix string, v T, names []string) string {
	if v == 0 {
		return "0"
	}
	var out []string
	for i, n := range names {
		if v&(1<<i) != 0 {
			out = append(out, prefix+n)
			v &^= 1 << i
		}
	}
	if v != 0 {
		out = append(out, fmt.Sprintf("%#x", uint32(v)))
	}
	return strings.Join(out, "|")
}
