package proto

import (
	"encoding/binary"
	"fmt"
)

// Sizes of the oldstyle greeting, in bytes. proto.md, "Oldstyle negotiation".
const (
	OldstylePadding = 124                             // zero bytes at its end
	OldstyleSize    = 8 + 8 + 8 + 4 + OldstylePadding // the whole
)

// OldstyleGreeting is the whole of oldstyle negotiation: the server sends it, and
// the transmission phase begins. proto.md, "Oldstyle negotiation".
type OldstyleGreeting struct {
	Size uint64 // of the export, in bytes
	// Handshake must be zero: the upper half of the flags means nothing here.
	// A peer's is kept as it came.
	Handshake HandshakeFlags
	Flags     TransmissionFlags
}

// AppendOldstyle appends a server's oldstyle greeting.
func AppendOldstyle(b []byte, g OldstyleGreeting) []byte {
	b = binary.BigEndian.AppendUint64(b, MagicInit)
	b = binary.BigEndian.AppendUint64(b, MagicOldstyle)
	b = binary.BigEndian.AppendUint64(b, g.Size)
	b = binary.BigEndian.AppendUint16(b, uint16(g.Handshake))
	b = binary.BigEndian.AppendUint16(b, uint16(g.Flags))
	return append(b, make([]byte, OldstylePadding)...)
}

// ParseOldstyle reads an oldstyle greeting of [OldstyleSize] bytes. The padding is
// not looked at: it is reserved.
func ParseOldstyle(b []byte) (OldstyleGreeting, error) {
	if len(b) < OldstyleSize || binary.BigEndian.Uint64(b) != MagicInit || binary.BigEndian.Uint64(b[8:]) != MagicOldstyle {
		return OldstyleGreeting{}, fmt.Errorf("%w: not the greeting of an oldstyle server", ErrMalformed)
	}
	return OldstyleGreeting{
		Size:      binary.BigEndian.Uint64(b[16:]),
		Handshake: HandshakeFlags(binary.BigEndian.Uint16(b[24:])),
		Flags:     TransmissionFlags(binary.BigEndian.Uint16(b[26:])),
	}, nil
}
