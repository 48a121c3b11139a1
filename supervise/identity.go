package supervise

import (
	"fmt"
	"math"

	"nbd.example/nbd/proto"
)

// A changedError says that a server has something else than what was attached. Waiting
// may help: the right one may come back.
type changedError struct{ reason string }

func (e *changedError) Error() string { return e.reason }

func changed(format string, args ...any) error {
	return &changedError{fmt.Sprintf(format, args...)}
}

// needed are the flags whose commands the kernel sends if it was told of them: a server
// that does not offer them any more would answer with errors.
const needed = proto.FlagSendFlush | proto.FlagSendFUA | proto.FlagSendTrim | proto.FlagSendWriteZeroes | proto.FlagCanMultiConn

// kernelFlags returns the transmission flags for the kernel. proto.md, "Transmission
// flags": without HAS_FLAGS the others mean nothing.
func kernelFlags(f proto.TransmissionFlags, readOnly bool) proto.TransmissionFlags {
	if f&proto.FlagHasFlags == 0 {
		f = proto.FlagHasFlags
	}
	if readOnly {
		f |= proto.FlagReadOnly
	}
	return f
}

// compare says what is not as it was when st was attached.
func (st *State) compare(p *peer) error {
	e, seen := &p.export, &st.Seen
	flags := kernelFlags(e.Flags, st.Spec.ReadOnly)
	missing := st.Flags & needed &^ flags
	if len(st.Connections) < 2 {
		missing &^= proto.FlagCanMultiConn
	}
	if flags&proto.FlagReadOnly != 0 && st.Flags&proto.FlagReadOnly == 0 {
		return changed("the server's export is read-only now, the device is not")
	}
	switch {
	case e.Size > math.MaxInt64:
		return changed("the server's export has %d bytes now, over the limit of 2^63-1", e.Size)
	case e.Size < uint64(st.Size):
		return changed("the server's export has %d bytes now, fewer than the device's %d", e.Size, st.Size)
	case missing != 0:
		return changed("the server does not offer %v any more, which the device relies on", missing)
	case e.BlockSizeTold && int64(e.BlockSize.Minimum) > st.BlockSize:
		return changed("the server wants blocks of %d bytes now, more than the device's %d", e.BlockSize.Minimum, st.BlockSize)
	case maxPayload(p) > 0 && int64(maxPayload(p)) < st.MaxRequest:
		return changed("the server takes requests of at most %d bytes now, and the device makes some of %d", maxPayload(p), st.MaxRequest)
	}
	if was := seen.Names[p.from.name]; was != "" && e.Name != "" && e.Name != was {
		return changed("the server calls its export %.100q now, and called it %.100q", e.Name, was)
	}
	return st.comparePeer(p.from.name, p.who)
}

// comparePeer compares a server's identity by TLS. One that was never met counts by
// what was verified of it, its name.
func (st *State) comparePeer(server, who string) error {
	if was, met := st.Seen.Peers[server]; met && was != who {
		return changed("the server proves by TLS to be %.300q now, and was %.300q", who, was)
	}
	return nil
}

// compareAnswer compares the instance.
func (st *State) compareAnswer(server string, a *answer) error {
	if err := st.comparePeer(server, a.who); err != nil {
		return err
	}
	switch was := st.Seen.Instance; a.instance {
	case was:
		return nil
	case "":
		return changed("the server's export has no instance name now, and was instance %.100q", was)
	default:
		return changed("the server's export is another instance: %.100q now, %.100q before: what is on it is not what was attached", a.instance, was)
	}
}
