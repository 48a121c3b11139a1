package server

import (
	"math/bits"

	"nbd.example/nbd/block"
	"nbd.example/nbd/handshake"
	"nbd.example/nbd/proto"
)

// defaultMaxPayload is what [transmission.Config.MaxPayload] means by 0.
const defaultMaxPayload = 64 << 20

// offer is what the handshake tells of an export.
func (l *lease) offer(maxPayload int) *handshake.Export {
	caps := l.dev.Caps()
	return &handshake.Export{
		Name:        l.cfg.Name,
		Description: l.cfg.Description,
		Size:        uint64(caps.Size),
		Flags:       offerFlags(&caps, l.cfg),
		BlockSize:   offerBlockSize(&caps, l.cfg, maxPayload),
		Contexts:    offerContexts(&caps),
		Handle:      l,
	}
}

// offerFlags turns what a device can do, less what the export hides, into
// transmission flags. proto.md, "Transmission flags". NBD_FLAG_SEND_DF and
// NBD_FLAG_BLOCK_STATUS_PAYLOAD are not of the export; the handshake adds them.
func offerFlags(c *block.Caps, x *Export) proto.TransmissionFlags {
	f := proto.FlagHasFlags
	add := func(flag proto.TransmissionFlags, can bool) {
		if can {
			f |= flag
		}
	}
	readOnly := c.ReadOnly || x.ReadOnly
	add(proto.FlagReadOnly, readOnly)
	add(proto.FlagSendFlush, c.Flush != block.None)
	add(proto.FlagSendFUA, c.FUA != block.None && !readOnly)
	add(proto.FlagRotational, c.Rotational || x.Rotational)
	add(proto.FlagSendTrim, c.Trim != block.None && !readOnly)
	add(proto.FlagSendWriteZeroes, c.Zero != block.None && !readOnly)
	add(proto.FlagSendFastZero, c.FastZero != block.None && !readOnly)
	add(proto.FlagSendCache, c.Cache != block.None)
	// A private device is another one for each connection: what one wrote,
	// another would not read.
	add(proto.FlagCanMultiConn, c.MultiConn && (!x.Private || x.Share != nil))

	f &^= x.Hide &^ (proto.FlagHasFlags | proto.FlagReadOnly)
	if f&proto.FlagSendWriteZeroes == 0 {
		f &^= proto.FlagSendFastZero // which the specification wants clear then
	}
	return f
}

// offerBlockSize follows proto.md, "Size constraints".
func offerBlockSize(c *block.Caps, x *Export, maxPayload int) proto.BlockSize {
	if maxPayload == 0 {
		maxPayload = defaultMaxPayload
	}
	s := proto.BlockSize{Minimum: max(x.MinBlock, 1), MaxPayload: uint32(maxPayload)}
	// A power of two from 4096: less is efficient nowhere, as the system's page
	// cache has at least that unit, and a device with a smaller one takes it, too.
	preferred := max(c.BlockSize.Preferred, int64(s.Minimum), 4096)
	preferred = 1 << bits.Len64(uint64(preferred-1))
	for preferred > int64(s.MaxPayload) {
		preferred /= 2
	}
	s.Preferred = uint32(preferred)
	return s
}

// offerContexts lists the metadata contexts of a device.
func offerContexts(c *block.Caps) []string {
	var all []string
	if c.Extents != block.None {
		all = append(all, proto.ContextBaseAllocation)
		if c.Depth {
			all = append(all, proto.ContextAllocationDepth)
		}
	}
	return append(all, proto.ContextInstance+c.Instance)
}
