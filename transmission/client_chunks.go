package transmission

import (
	"encoding/binary"
	"slices"

	"nbd.example/nbd/proto"
)

// maxPieces bounds the separate pieces in which one read may arrive: what a
// reply in chunks of 512 bytes and 32 MiB needs in the worst order.
const maxPieces = 1 << 15

// demuxReply is what has come of the chunks of one reply. It belongs to the
// reader. proto.md, "Structured reply types".
type demuxReply struct {
	begun    bool
	content  int // content chunks
	pieces   []demuxPiece
	statuses []uint32 // contexts whose status has come
	err      *RequestError
}

// demuxPiece is a stretch of the request that has arrived, in bytes from the
// request's start. Pieces are sorted and never touch.
type demuxPiece struct{ lo, hi uint64 }

func (r *demuxReply) reset() {
	r.begun, r.content, r.err = false, 0, nil
	r.pieces, r.statuses = r.pieces[:0], r.statuses[:0]
	if cap(r.pieces) > 1024 {
		r.pieces = nil
	}
}

// add notes the arrival of [lo, hi).
func (r *demuxReply) add(lo, hi uint64) error {
	i, _ := slices.BinarySearchFunc(r.pieces, lo, func(p demuxPiece, lo uint64) int {
		if p.hi < lo {
			return -1
		}
		return 1
	})
	// All pieces before i end before lo.
	if i == len(r.pieces) || hi < r.pieces[i].lo {
		if len(r.pieces) >= maxPieces {
			return peerSent("the data of one read in more than %d separate pieces", maxPieces)
		}
		r.pieces = slices.Insert(r.pieces, i, demuxPiece{lo, hi})
		return nil
	}
	p := &r.pieces[i]
	switch {
	case hi == p.lo:
		p.lo = lo
	case p.hi == lo:
		if i+1 < len(r.pieces) && r.pieces[i+1].lo <= hi {
			if r.pieces[i+1].lo < hi {
				return errOverlap
			}
			hi = r.pieces[i+1].hi
			r.pieces = slices.Delete(r.pieces, i+1, i+2)
			p = &r.pieces[i]
		}
		p.hi = hi
	default:
		return errOverlap
	}
	return nil
}

var errOverlap = peerSent("data of a read that overlaps what it has sent already")

// chunk takes one chunk of c's reply.
func (d *Demux) chunk(c *demuxCall, ch *proto.Chunk) error {
	c.reply.begun = true
	var err error
	switch {
	case ch.Type == proto.ChunkNone:
		if ch.Length != 0 || ch.Flags&proto.ReplyFlagDone == 0 {
			err = peerSent("%v with %d bytes and flags %v", ch.Type, ch.Length, ch.Flags)
		}
	case ch.Type.IsError():
		err = d.errorChunk(c, ch)
	case ch.Type == proto.ChunkOffsetData && c.Command == proto.CmdRead:
		err = d.dataChunk(c, ch)
	case ch.Type == proto.ChunkOffsetHole && c.Command == proto.CmdRead:
		err = d.holeChunk(c, ch)
	case ch.Type == d.statusType() && c.Command == proto.CmdBlockStatus:
		err = d.statusChunk(c, ch)
	default:
		err = peerSent("a chunk %v in reply to %v", ch.Type, c.Command)
	}
	if err != nil || ch.Flags&proto.ReplyFlagDone == 0 {
		return err
	}
	return d.finish(c)
}

func (d *Demux) statusType() proto.ChunkType {
	if d.extended {
		return proto.ChunkBlockStatusExt
	}
	return proto.ChunkBlockStatus
}

// finish judges a reply whose last chunk has come.
func (d *Demux) finish(c *demuxCall) error {
	r := &c.reply
	if r.err != nil {
		d.conclude(c, r.err)
		return nil
	}
	switch c.Command {
	case proto.CmdRead:
		whole := len(r.pieces) == 1 && r.pieces[0] == demuxPiece{0, c.Length}
		if !whole && c.Length > 0 {
			return peerSent("the end of a successful reply to %v with a part of its %d bytes missing", c.Command, c.Length)
		}
	case proto.CmdBlockStatus:
		want := len(c.Filter)
		if want == 0 {
			want = len(d.contexts)
		}
		if len(r.statuses) < max(want, 1) {
			return peerSent("the end of a successful reply to %v with %d of %d contexts", c.Command, len(r.statuses), want)
		}
	}
	d.conclude(c, nil)
	return nil
}

// place checks that n bytes at the absolute offset off belong to c and are new,
// and returns where in c.Data they begin.
func (c *demuxCall) place(off, n uint64) (int, error) {
	at := off - c.Offset
	if off < c.Offset || at > c.Length || n > c.Length-at {
		return 0, peerSent("%d bytes at offset %d in reply to a read of %d bytes at offset %d", n, off, c.Length, c.Offset)
	}
	r := &c.reply
	if r.content++; r.content > 1 && c.Flags&proto.CmdFlagDF != 0 {
		return 0, peerSent("more than one content chunk in reply to a read with NBD_CMD_FLAG_DF")
	}
	if e := r.err; e != nil && e.HasOffset && e.Offset >= off && e.Offset-off < n {
		return 0, errOverlap
	}
	return int(at), r.add(at, at+n)
}

func (d *Demux) dataChunk(c *demuxCall, ch *proto.Chunk) error {
	if ch.Length < 9 {
		return peerSent("%v with %d bytes", ch.Type, ch.Length)
	}
	b, err := d.need(8)
	if err != nil {
		return err
	}
	off := binary.BigEndian.Uint64(b)
	d.in.r += 8
	at, err := c.place(off, ch.Length-8)
	if err != nil {
		return err
	}
	return d.receive(c, at, int(ch.Length-8))
}

func (d *Demux) holeChunk(c *demuxCall, ch *proto.Chunk) error {
	if ch.Length != proto.HoleSize {
		return peerSent("%v with %d bytes", ch.Type, ch.Length)
	}
	b, err := d.need(proto.HoleSize)
	if err != nil {
		return err
	}
	off, n, err := proto.ParseHole(b)
	if err != nil {
		return peerSent("%v: %w", ch.Type, err)
	}
	d.in.r += proto.HoleSize
	at, err := c.place(off, uint64(n))
	if err != nil {
		return err
	}
	if d.begin(c) {
		clear(c.Data[at : at+int(n)])
		d.end(c)
	}
	return nil
}

// statusChunk takes what one context has to say. The sums of lengths are not
// checked here: whoever uses extents stops at the end of what was asked.
func (d *Demux) statusChunk(c *demuxCall, ch *proto.Chunk) error {
	limit := uint64(4 + 8*proto.MaxExtents)
	if d.extended {
		limit = 8 + 16*proto.MaxExtents
	}
	if ch.Length > limit {
		return peerSent("%v with %d bytes, over the limit of %d", ch.Type, ch.Length, limit)
	}
	b, err := d.takePayload(int(ch.Length))
	if err != nil {
		return err
	}
	id, ext, err := proto.ParseBlockStatus(b, ch.Type, d.in.ext[:0])
	d.in.ext = ext
	if err != nil {
		return peerSent("%v: %w", ch.Type, err)
	}
	r := &c.reply
	known := slices.Contains(d.contexts, id)
	if len(c.Filter) > 0 {
		known = slices.Contains(c.Filter, id)
	}
	switch {
	case !known:
		return peerSent("%v for context %d, which was not asked for", ch.Type, id)
	case slices.Contains(r.statuses, id):
		return peerSent("%v for context %d twice", ch.Type, id)
	}
	r.statuses = append(r.statuses, id)
	if c.Status != nil && d.begin(c) {
		c.Status(id, ext)
		d.end(c)
	}
	if cap(d.in.ext) > 1<<16 {
		d.in.ext = nil
	}
	return nil
}

// takePayload takes n bytes, which are valid until the next read. Memory grows
// with what arrives, not with what was announced.
func (d *Demux) takePayload(n int) ([]byte, error) {
	in := &d.in
	if n <= inputSize {
		b, err := d.need(n)
		in.r += len(b)
		return b, err
	}
	p := in.payload[:0]
	in.payload = nil
	for len(p) < n {
		if in.r == in.w {
			if err := d.fill(); err != nil {
				return nil, err
			}
		}
		k := min(in.w-in.r, n-len(p))
		p = append(p, in.buf[in.r:in.r+k]...)
		in.r += k
	}
	if cap(p) <= 1<<20 {
		in.payload = p
	}
	return p, nil
}

// errorChunk notes why c fails. Of several errors the first one counts. An
// unknown kind of error chunk fails only its request.
func (d *Demux) errorChunk(c *demuxCall, ch *proto.Chunk) error {
	if ch.Length > maxErrorChunk {
		return peerSent("%v with %d bytes, over the limit of %d", ch.Type, ch.Length, maxErrorChunk)
	}
	b, err := d.takePayload(int(ch.Length))
	if err != nil {
		return err
	}
	p, err := proto.ParseErrorPayload(b, ch.Type)
	if err != nil {
		return peerSent("%v: %w", ch.Type, err)
	}
	e := newRequestError(c.Command, p.Error)
	e.Message = p.Message
	if ch.Type == proto.ChunkErrorOffset && c.Command != proto.CmdFlush {
		if p.Offset < c.Offset || p.Offset-c.Offset >= max(c.Length, 1) {
			return peerSent("%v at offset %d in reply to %v of %d bytes at offset %d", ch.Type, p.Offset, c.Command, c.Length, c.Offset)
		}
		e.Offset, e.HasOffset = p.Offset, true
	}
	d.noteErrno(e.Sent)
	if c.reply.err == nil {
		c.reply.err = e
	}
	return nil
}
