package transmission

import "nbd.example/nbd/block"

// batch collects the answers to what was read at once, so that they go out with
// one system call.
type batch struct {
	segs     []segment
	cur      *buffer // being filled; not in segs yet
	from     int     // where in cur the next segment begins
	owner    int     // index of the last segment that shares cur, if from is not 0
	requests int     // whose answers end in cur
	held     int     // bytes of buffers in segs
	written  uint64  // bytes whose writing is answered
	large    bool    // more than one answer is to come
}

// room returns n bytes or more of free space behind what was committed. What is
// appended there becomes part of the batch by commit.
func (b *batch) room(n int) []byte {
	if b.cur != nil && cap(b.cur.b)-len(b.cur.b) < n {
		b.seal()
	}
	if b.cur == nil {
		size := smallSize
		if b.large && n > maxHeader {
			size = batchSize
		}
		b.cur, b.from = getBuffer(max(n, size)), 0
		b.cur.b = b.cur.b[:0]
	}
	return b.cur.b[len(b.cur.b):]
}

// commit makes p, which was appended to what room returned, part of the batch.
func (b *batch) commit(p []byte) { b.cur.b = b.cur.b[:len(b.cur.b)+len(p)] }

// span appends a stretch of a file, with which that many requests are answered, and for
// which held bytes are reserved.
func (b *batch) span(s block.Span, requests, held int) {
	if n := len(b.cur.b); n > b.from { // what follows goes on in the same buffer
		b.owner = len(b.segs)
		b.segs = append(b.segs, segment{buf: b.cur, lo: b.from, hi: n, shared: true, requests: b.requests})
		b.from, b.requests = n, 0
	}
	b.segs = append(b.segs, segment{span: s, requests: requests, held: held})
}

// seal makes a segment of what was committed since the last one.
func (b *batch) seal() {
	if b.cur == nil {
		return
	}
	n, size := len(b.cur.b), cap(b.cur.b)
	switch {
	case n > b.from:
		b.segs = append(b.segs, segment{buf: b.cur, lo: b.from, hi: n, requests: b.requests, held: size})
		b.held += size
		b.requests = 0
	case b.from > 0: // the last segment that has a part of it gives it back
		b.segs[b.owner].shared = false
		b.segs[b.owner].held = size
		b.held += size
	default:
		b.cur.put()
	}
	b.cur = nil
}

// gather is how many answers wait for more input to be read.
const gather = 32

// settled is how much is written, in bytes, before the answers for it leave. If
// they waited for more to join them, the client would be at rest meanwhile.
const settled = 64 << 10

// full reports whether the answers should go out before the next request is
// looked at.
func (b *batch) full() bool { return b.held >= batchSize || b.written >= settled }

// take returns the segments and the bytes that their buffers hold. The slice is
// the batch's own, until the next span or seal.
func (b *batch) take() (segs []segment, held int) {
	b.seal()
	segs, held = b.segs, b.held
	b.segs, b.held, b.written = b.segs[:0], 0, 0
	return segs, held
}
