package transmission

import "nbd.example/nbd/proto"

// answer is the reply of a worker to one request, in segments.
type answer struct {
	style style
	segs  []segment
}

func (a *answer) add(s segment) { a.segs = append(a.segs, s) }

// tail returns the last segment if n more bytes fit into it, or a new one.
func (a *answer) tail(n int) *segment {
	if k := len(a.segs) - 1; k >= 0 && a.segs[k].buf != nil {
		if s := &a.segs[k]; cap(s.buf.b)-s.hi >= n {
			return s
		}
	}
	a.add(segment{buf: getBuffer(max(n, smallSize))})
	return &a.segs[len(a.segs)-1]
}

func (a *answer) done(q *request) {
	s := a.tail(maxHeader)
	s.hi = len(a.style.appendDone(s.buf.b[:s.hi], &q.Request))
}

func (a *answer) hole(q *request, off uint64, n uint32) {
	s := a.tail(maxHeader)
	s.hi = len(a.style.appendHole(s.buf.b[:s.hi], &q.Request, off, n))
}

func (a *answer) fail(q *request, err error) {
	text := presentable(public(err))
	s := a.tail(maxHeader + len(text))
	s.hi = len(a.style.appendError(s.buf.b[:s.hi], &q.Request, errnoOf(err, &q.Request), text, err))
}

// reset throws away what was written so far.
func (a *answer) reset() {
	for i := range a.segs {
		a.segs[i].buf.put()
	}
	clear(a.segs)
	a.segs = a.segs[:0]
}

// memory returns how much the answer takes, in bytes.
func (a *answer) memory() (n int) {
	for i := range a.segs {
		n += a.segs[i].buf.size()
	}
	return n
}

// take returns the segments; with the last one the request is answered and the
// room that it reserved is free.
func (a *answer) take(held int) []segment {
	last := &a.segs[len(a.segs)-1]
	last.requests, last.held = 1, held
	return a.segs
}

// chunk appends the header of a chunk with n bytes of payload, and returns the
// segment that has room for them.
func (a *answer) chunk(q *request, t proto.ChunkType, f proto.ReplyFlags, n int) *segment {
	s := a.tail(maxHeader + n)
	s.hi = len(a.style.appendChunk(s.buf.b[:s.hi], &q.Request, t, f, n))
	return s
}
