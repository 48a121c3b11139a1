package relay

import "nbd.example/nbd/proto"

// lastRequest holds the last bytes of a stream of requests: as many as a request without
// data has. The kernel speaks with compact headers only.
type lastRequest struct {
	bytes [proto.RequestSize]byte
}

// add takes the next bytes of the stream, at least one, and reports whether they end with
// what looks like NBD_CMD_DISC. The end of the data of a write can look so as well. That
// does no harm: it matters only if the stream ends there, and then what the relay holds
// is sent rather than dropped, as it would be without a relay.
func (l *lastRequest) add(p []byte) bool {
	if n := len(p) - len(l.bytes); n >= 0 {
		copy(l.bytes[:], p[n:])
	} else {
		copy(l.bytes[:], l.bytes[len(p):])
		copy(l.bytes[-n:], p)
	}
	var r proto.Request
	return proto.ParseRequest(l.bytes[:], &r) && r.Command == proto.CmdDisc
}
