package transmission

import (
	"context"
	"errors"
	"fmt"
	"syscall"

	"nbd.example/nbd/block"
	"nbd.example/nbd/proto"
)

// refusal says why a request is not carried out.
type refusal struct {
	errno proto.Errno
	text  string
}

func refuse(e proto.Errno, format string, args ...any) *refusal {
	return &refusal{e, fmt.Sprintf(format, args...)}
}

// check decides whether a request may be carried out. It allocates only when it
// refuses. proto.md, "Request types", "Command flags", "Error values".
func (c *conn) check(r *proto.Request) *refusal {
	if bad := c.checkOffered(r); bad != nil {
		return bad
	}
	if r.Command == proto.CmdFlush {
		return nil // offset and length are reserved
	}
	// Not what was told in the handshake: the export may have grown since, and the
	// kernel's client is made larger without a new connection.
	size := uint64(c.dev.Size())
	if r.Command == proto.CmdBlockStatus && r.Flags&proto.CmdFlagPayloadLen != 0 {
		if r.Offset > size {
			return refuse(proto.EINVAL, "the status at %d is beyond the export's %d bytes", r.Offset, size)
		}
		if n := 8 + 4*uint64(len(c.s.Contexts)); r.Length < 8 || r.Length > n {
			return refuse(proto.EINVAL, "a block status filter of %d bytes, not 8 to %d", r.Length, n)
		}
		return nil // the length of the effect is in the payload, and checked there
	}
	if r.Offset > size || r.Length > size-r.Offset {
		if r.Command == proto.CmdWrite || r.Command == proto.CmdWriteZeroes {
			return refuse(proto.ENOSPC, "%d bytes at %d are beyond the export's %d", r.Length, r.Offset, size)
		}
		return refuse(proto.EINVAL, "%d bytes at %d are beyond the export's %d", r.Length, r.Offset, size)
	}
	if (r.Offset|r.Length)&c.alignMask != 0 {
		return refuse(proto.EINVAL, "%d bytes at %d are not aligned to the minimum block size of %d", r.Length, r.Offset, c.alignMask+1)
	}
	switch r.Command {
	case proto.CmdRead:
		if r.Length <= uint64(c.cfg.MaxPayload) {
			return nil
		}
		// proto.md, NBD_CMD_READ: EOVERFLOW tells a client with structured
		// replies to come again with smaller requests.
		if c.style == simple {
			return refuse(proto.EINVAL, "a read of %d bytes is over the maximum payload of %d", r.Length, c.cfg.MaxPayload)
		}
		return refuse(proto.EOVERFLOW, "a read of %d bytes is over the maximum payload of %d", r.Length, c.cfg.MaxPayload)
	case proto.CmdWrite:
		if r.Length > uint64(c.cfg.MaxPayload) {
			return refuse(proto.EINVAL, "a write of %d bytes is over the maximum payload of %d", r.Length, c.cfg.MaxPayload)
		}
	case proto.CmdBlockStatus:
		if r.Length == 0 {
			return refuse(proto.EINVAL, "the status of no bytes")
		}
	}
	return nil
}

// checkOffered refuses commands and flags that were not offered, and changes of
// a read-only export.
func (c *conn) checkOffered(r *proto.Request) *refusal {
	var flags proto.CommandFlags // that go with the command
	offered := true
	switch r.Command {
	case proto.CmdRead:
		flags = c.ifOffered(proto.FlagSendDF, proto.CmdFlagDF)
	case proto.CmdWrite:
		if c.style == extended {
			if r.Flags&proto.CmdFlagPayloadLen == 0 {
				return refuse(proto.EINVAL, "a write without NBD_CMD_FLAG_PAYLOAD_LEN")
			}
			flags = proto.CmdFlagPayloadLen
		}
	case proto.CmdFlush:
		offered = c.s.Flags&proto.FlagSendFlush != 0
	case proto.CmdTrim:
		offered = c.readOnly || c.s.Flags&proto.FlagSendTrim != 0
	case proto.CmdCache:
		offered = c.s.Flags&proto.FlagSendCache != 0
	case proto.CmdWriteZeroes:
		offered = c.readOnly || c.s.Flags&proto.FlagSendWriteZeroes != 0
		flags = proto.CmdFlagNoHole | c.ifOffered(proto.FlagSendFastZero, proto.CmdFlagFastZero)
	case proto.CmdBlockStatus:
		if c.style == simple || len(c.s.Contexts) == 0 {
			return refuse(proto.EINVAL, "NBD_CMD_BLOCK_STATUS without a metadata context chosen for this export")
		}
		flags = proto.CmdFlagReqOne | c.ifOffered(proto.FlagBlockStatusPayload, proto.CmdFlagPayloadLen)
	default:
		return refuse(proto.EINVAL, "unknown command %s", r.Command)
	}
	if !offered {
		return refuse(proto.EINVAL, "%s was not offered", r.Command)
	}
	flags |= c.ifOffered(proto.FlagSendFUA, proto.CmdFlagFUA)
	if c.readOnly && changes(r.Command) {
		return refuse(proto.EPERM, "the export is read-only")
	}
	if bad := r.Flags &^ flags; bad != 0 {
		return refuse(proto.EINVAL, "%s with %s", r.Command, bad)
	}
	return nil
}

func (c *conn) ifOffered(offer proto.TransmissionFlags, f proto.CommandFlags) proto.CommandFlags {
	if c.s.Flags&offer != 0 {
		return f
	}
	return 0
}

// errnoOf finds the error number that the protocol has for err.
// proto.md, "Error values".
func errnoOf(err error, r *proto.Request) proto.Errno {
	var bad *badRequest
	switch {
	case errors.As(err, &bad):
		return bad.errno
	case errors.Is(err, block.ErrNotStable):
		return proto.EIO
	case errors.Is(err, block.ErrReadOnly), errors.Is(err, syscall.EPERM), errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EROFS):
		return proto.EPERM
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT), errors.Is(err, syscall.EFBIG):
		return proto.ENOSPC
	case errors.Is(err, block.ErrRange):
		if r.Command == proto.CmdWrite || r.Command == proto.CmdWriteZeroes {
			return proto.ENOSPC
		}
		return proto.EINVAL
	case errors.Is(err, errors.ErrUnsupported):
		// ENOTSUP has one use only.
		if r.Flags&proto.CmdFlagFastZero != 0 {
			return proto.ENOTSUP
		}
		return proto.EINVAL
	case errors.Is(err, syscall.ENOMEM):
		return proto.ENOMEM
	case errors.Is(err, context.Canceled):
		return proto.EIO
	}
	return proto.EIO
}
