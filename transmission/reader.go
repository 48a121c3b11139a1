package transmission

import (
	"errors"
	"fmt"

	"nbd.example/nbd/block"
	"nbd.example/nbd/proto"
)

// wholeWrite is the length up to which a write is carried out in one piece, in
// bytes. The payload of a longer one goes to the page cache as it comes in,
// through a buffer that stays in the processor's cache.
const wholeWrite = 64 << 10

// page is what the pieces of a long write end on, so that none touches a part
// of a page which the system would have to read first.
const page = 4096

// longRead is the length from which a read is looked at for holes, in bytes.
const longRead = 64 << 10

// spanRead is the length from which a read of data leaves the file without a copy
// through this process, in bytes.
const spanRead = 32 << 10

// deepQueue is how many requests must come at once for a queue to be deep.
const deepQueue = 4

// errDisconnect is how readAll's callees say NBD_CMD_DISC, and errDoomed that the
// server itself has cut the connection.
var (
	errDisconnect = errors.New("disconnect")
	errDoomed     = errors.New("cut")
)

// readAll reads requests until the client disconnects (nil) or cannot be read.
func (c *conn) readAll() (err error) {
	defer c.recovered(&err)
	need := c.style.requestSize()
	for {
		for len(c.in.unread()) >= need {
			if c.out.dead.Load() && c.doomed() {
				return errDoomed
			}
			if err := c.readOne(need); err == errDisconnect {
				return nil
			} else if err != nil {
				return err
			}
			if c.batch.full() {
				c.flush()
			}
		}
		if err := c.fill(); err != nil {
			return err
		}
	}
}

// fill gets more input. What is ready is sent before waiting, or when it has
// become much: while more comes in, answers gather.
func (c *conn) fill() error {
	if c.batch.requests >= gather || c.batch.held > 0 {
		c.flush()
	}
	c.fenced = false
	c.publish()
	c.in.deep = c.stats.Requests-c.seen >= deepQueue
	c.seen = c.stats.Requests
	return c.in.fill()
}

func (c *conn) readOne(need int) error {
	var r proto.Request
	head := c.in.unread()
	ok := false
	if c.style == extended {
		ok = proto.ParseExtendedRequest(head, &r)
	} else {
		ok = proto.ParseRequest(head, &r)
	}
	if !ok {
		return fmt.Errorf("peer sent a request with the wrong magic number %#x", head[:4])
	}
	c.in.skip(need)
	c.batch.large = len(head) >= 2*need
	if r.Command == proto.CmdDisc {
		if c.tap != nil {
			c.tap.Begun(r, nil, nil)
		}
		return errDisconnect
	}
	c.admitOne()
	c.stats.Requests++
	payload := r.Payload(c.style == extended)
	if c.style == extended && payload > uint64(c.cfg.MaxPayload) {
		return fmt.Errorf("peer sent %s with a payload of %d bytes, over the maximum of %d", r.Command, payload, c.cfg.MaxPayload)
	}
	if bad := c.check(&r); bad != nil {
		c.refuse(&r, bad)
		return c.drop(payload)
	}
	switch {
	case r.Length == 0 && r.Command != proto.CmdFlush:
		if c.tap != nil {
			c.tapAnswered(&r, nil)
		}
		c.done(&r)
		return c.drop(payload)
	case r.Command == proto.CmdRead:
		return c.readCommand(&r)
	case r.Command == proto.CmdWrite:
		return c.writeCommand(&r)
	case payload > 0: // the filter of a block status request
		return c.collect(c.newStatus(&r))
	}
	return c.dispatch(&r)
}

// admitOne waits while too many requests are not answered.
func (c *conn) admitOne() {
	if c.pending.Load() >= int64(c.cfg.MaxRequests) {
		c.flush()
		c.await(func() bool { return c.pending.Load() < int64(c.cfg.MaxRequests) || c.hurry.Load() || c.doomed() })
	}
	c.pending.Add(1)
	c.owed = true
}

// drop drains the payload of a refused request.
func (c *conn) drop(n uint64) error {
	for n > 0 {
		k := min(n, uint64(len(c.in.unread())))
		c.in.skip(int(k))
		if n -= k; n > 0 {
			if err := c.fill(); err != nil {
				return err
			}
		}
	}
	return nil
}

// done answers r with success and no data.
func (c *conn) done(r *proto.Request) {
	c.batch.commit(c.style.appendDone(c.batch.room(maxHeader)[:0], r))
	c.batch.requests++
	c.owed = false
}

// refuse answers r with an error.
func (c *conn) refuse(r *proto.Request, bad *refusal) {
	c.stats.Errors++
	if c.tap != nil {
		c.tap.Answered(*r, nil, bad.errno)
	}
	n := maxHeader + len(bad.text)
	c.batch.commit(c.style.appendError(c.batch.room(n)[:0], r, bad.errno, bad.text, nil))
	c.batch.requests++
	c.owed = false
}

// maxHeader is more than any reply has besides its data and texts.
const maxHeader = 64

// readCommand answers a read from memory if it can.
func (c *conn) readCommand(r *proto.Request) error {
	if c.inPlace && !c.held.full() && c.readNow(r) {
		c.stats.BytesRead += r.Length
		if c.tap != nil {
			c.tapAnswered(r, nil)
		}
		return nil
	}
	q := newRequest(c, r)
	q.held = answerSize(r.Length)
	if c.inPlace && c.alone() && c.held.reserve(q.held) {
		// Nobody waits behind a client that asks one thing at a time, and
		// to wait here costs half of what a worker costs.
		c.carryOut(q)
		return nil
	}
	q.arrived()
	return nil
}

// answerSize is what the answer to a read of n bytes takes, in bytes of memory.
func answerSize(n uint64) int { return bufferSize(maxHeader + int(n)) }

// alone reports whether the request at hand is the only one.
func (c *conn) alone() bool {
	return len(c.in.unread()) == 0 && c.pending.Load() == 1
}

func (c *conn) readNow(r *proto.Request) bool {
	n := int(r.Length)
	if c.mapped && n < longRead { // for long ones sendfile is faster
		if s, ok := c.dev.Mapped(int64(r.Offset), int64(n)); ok {
			c.sendSpan(r, s, 0)
			return true
		}
	}
	if n >= c.spanFrom {
		// Where there is no span, a worker copies while the reader goes on.
		return c.readSpan(r)
	}
	return c.readCopy(r, n)
}

// readCopy reads right behind the reply's header.
func (c *conn) readCopy(r *proto.Request, n int) bool {
	head := c.style.dataHeader()
	p := c.batch.room(head + n)
	p = p[:head+n]
	if !c.dev.TryRead(p[head:], int64(r.Offset)) {
		return false
	}
	c.style.appendData(p[:0], r, r.Offset, n, proto.ReplyFlagDone)
	c.batch.commit(p)
	c.batch.requests++
	c.owed = false
	return true
}

// readSpan lets the socket take the data from the page cache.
func (c *conn) readSpan(r *proto.Request) bool {
	if c.raw == nil {
		return false
	}
	s, ok := c.dev.Range(int64(r.Offset), int64(r.Length), c.holes && r.Flags&proto.CmdFlagDF == 0)
	if !ok {
		return false
	}
	held := 0
	if c.out.copies { // one at a time, but who takes nothing must not have as many of them as he likes
		if held = bufferSize(copySize(s.Len)); !c.held.reserve(held) {
			return false
		}
	}
	c.sendSpan(r, s, held)
	return true
}

// sendSpan answers with bytes that are not copied through this process, or through
// the output's buffer, for which held is reserved.
func (c *conn) sendSpan(r *proto.Request, s block.Span, held int) {
	p := c.batch.room(maxHeader)[:0]
	c.batch.commit(c.style.appendData(p, r, r.Offset, int(r.Length), 0))
	if c.style == simple {
		c.batch.span(s, 1, held)
		c.owed = false
	} else {
		// The chunk with the data must not be the last while its transmission
		// can still fail. proto.md, "Structured reply chunk message".
		c.batch.span(s, 0, held)
		c.done(r)
	}
}

// postpone hands a request to the workers as soon as there is room for its answer.
func (c *conn) postpone(q *request) {
	c.mu.Lock()
	c.deferred.push(q)
	c.waits.Add(1)
	c.mu.Unlock()
	c.admit()
}

// admit moves postponed requests to the workers while there is room. When nothing
// is sent any more they need none: they are passed over.
func (c *conn) admit() {
	c.mu.Lock()
	for q := c.deferred.head; q != nil; q = c.deferred.head {
		if c.out.dead.Load() {
			q.held = 0
		} else if !c.held.reserve(q.held) {
			break
		}
		c.waits.Add(-1)
		c.enqueueLocked(c.deferred.pop())
	}
	c.mu.Unlock()
}
