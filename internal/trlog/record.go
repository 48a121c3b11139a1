package trlog

import (
	"encoding/binary"
	"math"

	"nbd.example/nbd/proto"
)

// Numbers of the format that are not in the protocol.
const (
	// magicSetting begins a setting, which has the form of a request.
	magicSetting = proto.MagicRequest + 1
	// settingDataLog is the type of the setting SET_DATALOG. Its length is 1 for
	// on, 0 for off.
	settingDataLog = 1
	// fromReference is the offset in settings of the reference.
	fromReference = 0x4a93ba39a54f31b6
	// fromHere is the offset in settings of ours, and settingLost the type of
	// LOST, whose cookie is how many records are missing.
	fromHere    = 0x4e42444c4f535421
	settingLost = 1
	// cookieEnd is the cookie of a SET_DATALOG that repeats what holds anyway: it
	// stands at the end of a long log that was closed in order, which then need not
	// be read from its beginning to be continued. Nobody else looks at that cookie.
	cookieEnd = 0x4e4244454e442121
)

// endLength is the length of a log from which it is marked at its end, in bytes.
const endLength = 16 << 20

// Kind tells records apart.
type Kind uint8

// Kinds of records.
const (
	// Request is what a client sent, with data if the log has them.
	Request Kind = iota
	// Reply is the server's answer to the request with the same cookie.
	Reply
	// Chunk is the header of a structured reply.
	Chunk
	// Setting says whether data follows writes.
	Setting
	// Lost says that records are missing.
	Lost
	// Unknown is a setting of unknown meaning.
	Unknown
	// Garbage are bytes that are no record.
	Garbage
)

// Record is one record of a log.
type Record struct {
	Kind Kind
	// At is where the record begins, in bytes from the start of the log.
	At int64
	// Request of the kinds Request, Setting and Unknown, the latter as they stand
	// in the log.
	Request proto.Request
	// Data reports for a Request whether what was written follows, for a Setting
	// whether it does from here on.
	Data bool
	// Reply of the kind Reply.
	Reply proto.SimpleReply
	// Chunk of the kind Chunk. Its payload is not in the log.
	Chunk proto.Chunk
	// Count is for Lost how many records are missing, and for Garbage how many bytes
	// were passed over.
	Count uint64
}

// appendSetting appends a setting.
func appendSetting(b []byte, typ uint32, cookie, from uint64, value uint32) []byte {
	b = binary.BigEndian.AppendUint32(b, magicSetting)
	b = binary.BigEndian.AppendUint32(b, typ)
	b = binary.BigEndian.AppendUint64(b, cookie)
	b = binary.BigEndian.AppendUint64(b, from)
	return binary.BigEndian.AppendUint32(b, value)
}

func appendDataLog(b []byte, on bool) []byte {
	value := uint32(0)
	if on {
		value = 1
	}
	return appendSetting(b, settingDataLog, 0, fromReference, value)
}

func appendLost(b []byte, records uint64) []byte {
	return appendSetting(b, settingLost, records, fromHere, 0)
}

// maxPiece is the longest change that one record holds, in bytes: whole blocks
// of any size that a server may demand.
const maxPiece = 1<<32 - proto.MaxMinBlock

// maxPieces bounds the records of one request.
const maxPieces = 1 << 12

// pieces returns how many records a request takes.
func pieces(r *proto.Request) uint64 {
	if r.Length <= math.MaxUint32 || r.Command != proto.CmdTrim && r.Command != proto.CmdWriteZeroes {
		return 1
	}
	return (r.Length-1)/maxPiece + 1
}

// appendRequest appends a request without its data, in as many records as it
// takes. What is no change has no need for several, and is clipped.
func appendRequest(b []byte, r *proto.Request) []byte {
	q := *r
	if q.Command == proto.CmdWrite {
		q.Flags &^= proto.CmdFlagPayloadLen // it means nothing in a compact request
	}
	if pieces(r) == 1 {
		q.Length = min(q.Length, math.MaxUint32)
		return proto.AppendRequest(b, &q)
	}
	for left := r.Length; left > 0; left -= q.Length {
		q.Length = min(left, maxPiece)
		b = proto.AppendRequest(b, &q)
		q.Offset += q.Length
	}
	return b
}
