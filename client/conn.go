package client

import (
	"context"
	"errors"
	"fmt"

	"nbd.example/nbd/block"
	"nbd.example/nbd/proto"
	"nbd.example/nbd/transmission"
)

// Error is the server's answer to a request that it could not carry out.
// errors.As finds it in the errors of Conn's methods, errors.Is its number.
type Error = transmission.RequestError

// Conn is a back end with everything that the protocol has.
var (
	_ block.Backend    = (*Conn)(nil)
	_ block.Writer     = (*Conn)(nil)
	_ block.Flusher    = (*Conn)(nil)
	_ block.Trimmer    = (*Conn)(nil)
	_ block.ZeroWriter = (*Conn)(nil)
	_ block.Extenter   = (*Conn)(nil)
	_ block.Cacher     = (*Conn)(nil)
)

// Caps translates what the server offers. There is no ability that the server
// does not have, but what a Device can emulate well over a network.
func (c *Conn) Caps() block.Caps {
	level := func(f proto.TransmissionFlags, otherwise block.Level) block.Level {
		if c.offers(f) {
			return block.Native
		}
		return otherwise
	}
	caps := block.Caps{
		Size:       c.size,
		BlockSize:  block.BlockSize{Minimum: c.min, Preferred: int64(c.export.BlockSize.Preferred)},
		ReadOnly:   c.offers(proto.FlagReadOnly),
		Rotational: c.offers(proto.FlagRotational),
		MultiConn:  c.offers(proto.FlagCanMultiConn),
		Flush:      level(proto.FlagSendFlush, block.None),
		FUA:        level(proto.FlagSendFUA, block.Auto),
		Trim:       level(proto.FlagSendTrim, block.None),
		Zero:       level(proto.FlagSendWriteZeroes, block.Emulated),
		FastZero:   level(proto.FlagSendWriteZeroes|proto.FlagSendFastZero, block.Emulated),
		Extents:    block.Emulated,
		Cache:      level(proto.FlagSendCache, block.None), // reading in its place would only cost
	}
	if c.extents {
		caps.Extents = block.Native
	}
	return caps
}

// ReadAt fills p from off.
func (c *Conn) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := c.check(proto.CmdRead, off, int64(len(p))); err != nil {
		return err
	}
	for len(p) > 0 {
		n := min(int64(len(p)), c.maxPayload)
		call := transmission.Call{Command: proto.CmdRead, Offset: uint64(off), Data: p[:n]}
		if err := c.do(ctx, &call); err != nil {
			return err
		}
		p, off = p[n:], off+n
	}
	return nil
}

// WriteAt writes p at off. The only flag is block.FUA.
func (c *Conn) WriteAt(ctx context.Context, p []byte, off int64, f block.Flags) error {
	flags, err := c.change(proto.CmdWrite, off, int64(len(p)), f, block.FUA)
	if err != nil {
		return err
	}
	for len(p) > 0 {
		n := min(int64(len(p)), c.maxPayload)
		call := transmission.Call{Command: proto.CmdWrite, Flags: flags, Offset: uint64(off), Data: p[:n]}
		if err := c.do(ctx, &call); err != nil {
			return err
		}
		p, off = p[n:], off+n
	}
	return nil
}

// Flush makes all writes stable that were answered before.
func (c *Conn) Flush(ctx context.Context) error {
	if !c.offers(proto.FlagSendFlush) {
		return notOffered(proto.CmdFlush)
	}
	return c.do(ctx, &transmission.Call{Command: proto.CmdFlush})
}

// Trim lets go of a range. The only flag is block.FUA.
func (c *Conn) Trim(ctx context.Context, off, n int64, f block.Flags) error {
	flags, err := c.change(proto.CmdTrim, off, n, f, block.FUA)
	if err != nil {
		return err
	}
	if !c.offers(proto.FlagSendTrim) {
		return notOffered(proto.CmdTrim)
	}
	return c.effect(ctx, proto.CmdTrim, flags, off, n)
}

// WriteZeroes makes a range read as zeroes. Flags: block.FUA, block.NoHole,
// block.FastZero.
func (c *Conn) WriteZeroes(ctx context.Context, off, n int64, f block.Flags) error {
	flags, err := c.change(proto.CmdWriteZeroes, off, n, f, block.FUA|block.NoHole|block.FastZero)
	if err != nil {
		return err
	}
	if !c.offers(proto.FlagSendWriteZeroes) || f&block.FastZero != 0 && !c.offers(proto.FlagSendFastZero) {
		return notOffered(proto.CmdWriteZeroes)
	}
	return c.effect(ctx, proto.CmdWriteZeroes, flags, off, n)
}

// Cache brings a range nearer to the server, as a hint.
func (c *Conn) Cache(ctx context.Context, off, n int64) error {
	if err := c.check(proto.CmdCache, off, n); err != nil {
		return err
	}
	if !c.offers(proto.FlagSendCache) {
		return notOffered(proto.CmdCache)
	}
	return c.effect(ctx, proto.CmdCache, 0, off, n)
}

// effect sends a request without payload. A server may find one too long that
// is longer than the maximum payload: then it gets shorter ones.
// proto.md, "Size constraints".
func (c *Conn) effect(ctx context.Context, cmd proto.Command, flags proto.CommandFlags, off, n int64) error {
	most := c.maxEffect
	for n > 0 {
		k := min(n, most)
		err := c.do(ctx, &transmission.Call{Command: cmd, Flags: flags, Offset: uint64(off), Length: uint64(k)})
		if k > c.maxPayload && flags&proto.CmdFlagFastZero == 0 && (errors.Is(err, proto.EOVERFLOW) || errors.Is(err, proto.EINVAL)) {
			most = c.maxPayload
			continue
		}
		if err != nil {
			return err
		}
		off, n = off+k, n-k
	}
	return nil
}

// Extents tells what is allocated, by the context base:allocation. Flag:
// block.One.
func (c *Conn) Extents(ctx context.Context, off, n int64, f block.Flags, add func(block.Extent) bool) error {
	if !c.extents {
		return fmt.Errorf("%v: %w: the context %s was not chosen", proto.CmdBlockStatus, errors.ErrUnsupported, proto.ContextBaseAllocation)
	}
	if err := c.check(proto.CmdBlockStatus, off, n); err != nil {
		return err
	}
	var ext []proto.Extent
	call := transmission.Call{Command: proto.CmdBlockStatus, Filter: c.filter}
	if f&block.One != 0 {
		call.Flags = proto.CmdFlagReqOne
	}
	call.Status = func(id uint32, x []proto.Extent) {
		if id == c.allocation {
			ext = append(ext[:0], x...)
		}
	}
	for end := off + n; off < end; {
		call.Offset, call.Length = uint64(off), uint64(min(end-off, c.maxEffect))
		if err := c.do(ctx, &call); err != nil {
			return err
		}
		for _, x := range ext {
			length := min(x.Length, uint64(c.size-off))
			if length == 0 {
				break
			}
			if !add(block.Extent{Length: int64(length), State: state(x.Status)}) {
				return nil
			}
			if off += int64(length); f&block.One != 0 {
				return nil
			}
		}
	}
	return nil
}

// state translates base:allocation. Unknown bits mean nothing.
func state(s uint64) (out block.State) {
	if s&uint64(proto.StateHole) != 0 {
		out |= block.Hole
	}
	if s&uint64(proto.StateZero) != 0 {
		out |= block.Zero
	}
	return out
}

// BlockStatus asks for the state of n bytes from off in every chosen context,
// and returns what the server told for each, by the context's id. It may have
// told of less, and of more. With one set, it is one extent for each context.
func (c *Conn) BlockStatus(ctx context.Context, off, n int64, one bool) (map[uint32][]proto.Extent, error) {
	if len(c.agreed.Contexts) == 0 {
		return nil, fmt.Errorf("%v: %w: no metadata context was chosen", proto.CmdBlockStatus, errors.ErrUnsupported)
	}
	if err := c.check(proto.CmdBlockStatus, off, n); err != nil {
		return nil, err
	}
	out := map[uint32][]proto.Extent{}
	call := transmission.Call{Command: proto.CmdBlockStatus, Offset: uint64(off), Length: uint64(min(n, c.maxEffect))}
	if one {
		call.Flags = proto.CmdFlagReqOne
	}
	call.Status = func(id uint32, x []proto.Extent) { out[id] = append([]proto.Extent(nil), x...) }
	if err := c.do(ctx, &call); err != nil {
		return nil, err
	}
	return out, nil
}

// check refuses what the server need not serve. proto.md, "Size constraints".
func (c *Conn) check(cmd proto.Command, off, n int64) error {
	switch {
	case off < 0 || n < 0 || off > c.size || n > c.size-off:
		return fmt.Errorf("%v: %w: %d bytes at %d of %d", cmd, block.ErrRange, n, off, c.size)
	case (off|n)&(c.min-1) != 0:
		return fmt.Errorf("%v: %d bytes at %d: not multiples of the server's minimum block size %d: %w", cmd, n, off, c.min, proto.EINVAL)
	}
	return nil
}

// change checks a change, and translates its flags.
func (c *Conn) change(cmd proto.Command, off, n int64, f, allowed block.Flags) (flags proto.CommandFlags, err error) {
	switch {
	case c.offers(proto.FlagReadOnly):
		return 0, fmt.Errorf("%v: %w", cmd, block.ErrReadOnly)
	case f&^allowed != 0:
		return 0, fmt.Errorf("%v: flags %#x: %w", cmd, uint8(f&^allowed), proto.EINVAL)
	case f&block.FUA != 0 && !c.offers(proto.FlagSendFUA):
		return 0, fmt.Errorf("%v with FUA: %w: the server does not offer it", cmd, errors.ErrUnsupported)
	}
	if f&block.FUA != 0 {
		flags |= proto.CmdFlagFUA
	}
	if f&block.NoHole != 0 {
		flags |= proto.CmdFlagNoHole
	}
	if f&block.FastZero != 0 {
		flags |= proto.CmdFlagFastZero
	}
	return flags, c.check(cmd, off, n)
}

func notOffered(cmd proto.Command) error {
	return fmt.Errorf("%v: %w: the server does not offer it", cmd, errors.ErrUnsupported)
}

// do carries out one request, and gives its error the place where it happened.
func (c *Conn) do(ctx context.Context, call *transmission.Call) error {
	err := c.demux.Do(ctx, call)
	if err == nil {
		return nil
	}
	if e := (*Error)(nil); errors.As(err, &e) && e.HasOffset {
		return &block.OffsetError{Off: int64(e.Offset), Err: err}
	}
	return err
}
