package transmission

import (
	"fmt"
	"slices"
	"unsafe"

	"nbd.example/nbd/block"
	"nbd.example/nbd/proto"
)

// maxStatus bounds the descriptors of one reply and context. The client comes
// back for the rest. proto.md, NBD_CMD_BLOCK_STATUS.
const maxStatus = 1 << 12

// newStatus makes a request for block status, with room for the longest answer and
// for what it is made from.
func (c *conn) newStatus(r *proto.Request) *request {
	q := newRequest(c, r)
	limit := maxStatus
	if r.Flags&proto.CmdFlagReqOne != 0 {
		limit = 1
	}
	q.held = smallSize + limit*int(unsafe.Sizeof(block.Extent{})+unsafe.Sizeof(proto.Extent{}))
	for _, x := range c.s.Contexts {
		if needsExtents(x) {
			q.held += bufferSize(maxHeader + 16*limit)
		}
	}
	return q
}

// blockStatus answers with one chunk for each context.
func (c *conn) blockStatus(q *request, a *answer) error {
	length, contexts := q.Length, c.s.Contexts
	if q.payload != nil {
		f, chosen, err := c.filter(q)
		if err != nil {
			return err
		}
		length, contexts = f.Length, chosen
	}
	if size := uint64(c.dev.Size()); (q.Offset|length)&c.alignMask != 0 || length == 0 || length > size-q.Offset {
		return &badRequest{proto.EINVAL, fmt.Sprintf("the status of %d bytes at %d of the export's %d", length, q.Offset, size)}
	}
	var extents []block.Extent
	if slices.ContainsFunc(contexts, needsExtents) {
		var err error
		if extents, err = c.extents(q, length); err != nil {
			return err
		}
	}
	for i, x := range contexts {
		flags := proto.ReplyFlags(0)
		if i == len(contexts)-1 {
			flags = proto.ReplyFlagDone
		}
		c.appendStatus(q, a, x, flags, c.describe(x, extents, length, q.Flags&proto.CmdFlagReqOne != 0))
	}
	if len(contexts) == 0 { // a filter that chose none
		a.done(q)
	}
	return nil
}

// filter reads the payload that chooses some of the contexts. Extension,
// NBD_CMD_BLOCK_STATUS: duplicate and unknown ids are EINVAL.
func (c *conn) filter(q *request) (proto.StatusFilter, []proto.MetaContext, error) {
	f, err := proto.ParseStatusFilter(q.payload.b, len(c.s.Contexts))
	if err != nil {
		return f, nil, &badRequest{proto.EINVAL, err.Error()}
	}
	var chosen []proto.MetaContext
	for _, id := range f.Contexts {
		i := slices.IndexFunc(c.s.Contexts, func(x proto.MetaContext) bool { return x.ID == id })
		if i < 0 || slices.Contains(chosen, c.s.Contexts[i]) {
			return f, nil, &badRequest{proto.EINVAL, fmt.Sprintf("metadata context id %d is unknown, or named twice", id)}
		}
		chosen = append(chosen, c.s.Contexts[i])
	}
	return f, chosen, nil
}

func needsExtents(x proto.MetaContext) bool {
	return x.Name == proto.ContextBaseAllocation || x.Name == proto.ContextAllocationDepth
}

// extents asks the device, up to the bounds of one reply.
func (c *conn) extents(q *request, length uint64) ([]block.Extent, error) {
	var flags block.Flags
	limit := maxStatus
	if q.Flags&proto.CmdFlagReqOne != 0 {
		flags, limit = block.One, 1
	}
	var out []block.Extent
	covered := uint64(0)
	err := c.dev.Extents(c.ctx, int64(q.Offset), int64(length), flags, func(x block.Extent) bool {
		covered += uint64(x.Length)
		if n := len(out) - 1; n >= 0 && out[n].State == x.State && out[n].Depth == x.Depth {
			out[n].Length += x.Length
		} else {
			out = append(out, x)
		}
		return covered < length && len(out) < limit
	})
	if err == nil && len(out) == 0 {
		err = fmt.Errorf("the device told no extent at %d", q.Offset)
	}
	return out, err
}

// describe puts extents into the terms of context x. Neighbours with the same
// status become one; with one, only the first remains, and it does not reach
// beyond the request. proto.md, "Structured reply types", NBD_REPLY_TYPE_BLOCK_STATUS.
func (c *conn) describe(x proto.MetaContext, extents []block.Extent, length uint64, one bool) []proto.Extent {
	if !needsExtents(x) { // the instance: one word for all
		return []proto.Extent{{Length: c.clip(length)}}
	}
	var out []proto.Extent
	for _, e := range extents {
		status := uint64(0)
		if x.Name == proto.ContextAllocationDepth {
			status = uint64(e.Depth)
		} else {
			if e.State&block.Hole != 0 {
				status |= uint64(proto.StateHole)
			}
			if e.State&block.Zero != 0 {
				status |= uint64(proto.StateZero)
			}
		}
		if n := len(out) - 1; n >= 0 && out[n].Status == status && c.clip(out[n].Length+uint64(e.Length)) == out[n].Length+uint64(e.Length) {
			out[n].Length += uint64(e.Length)
			continue
		}
		clipped := c.clip(uint64(e.Length))
		out = append(out, proto.Extent{Length: clipped, Status: status})
		if clipped < uint64(e.Length) {
			break
		}
	}
	if one {
		out = out[:1]
		out[0].Length = min(out[0].Length, length)
	}
	return out
}

// clip keeps a length within the 32 bits of a compact descriptor, in whole blocks.
func (c *conn) clip(n uint64) uint64 {
	if c.style == extended {
		return n
	}
	return min(n, 1<<32-1<<16)
}

func (c *conn) appendStatus(q *request, a *answer, x proto.MetaContext, f proto.ReplyFlags, extents []proto.Extent) {
	if c.style == extended {
		s := a.chunk(q, proto.ChunkBlockStatusExt, f, 8+16*len(extents))
		s.hi = len(proto.AppendBlockStatusExt(s.buf.b[:s.hi], x.ID, extents))
		return
	}
	s := a.chunk(q, proto.ChunkBlockStatus, f, 4+8*len(extents))
	s.hi = len(proto.AppendBlockStatus(s.buf.b[:s.hi], x.ID, extents))
}

// badRequest is an error with its error number.
type badRequest struct {
	errno proto.Errno
	text  string
}

func (e *badRequest) Error() string { return e.text }
