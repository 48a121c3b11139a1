package transmission

import (
	"nbd.example/nbd/block"
	"nbd.example/nbd/proto"
)

// dispatch leaves a request without payload to the workers.
func (c *conn) dispatch(r *proto.Request) error {
	if r.Command == proto.CmdFlush && c.freeFlush && c.dev.Flush(c.ctx) == nil {
		if c.tap != nil {
			c.tapAnswered(r, nil)
		}
		c.done(r)
		return nil
	}
	switch {
	case r.Command == proto.CmdBlockStatus:
		c.newStatus(r).arrived()
		return nil
	case !changes(r.Command):
		newRequest(c, r).arrived()
		return nil
	}
	if err := c.fence(false); err != nil {
		return err
	}
	q := newRequest(c, r)
	q.order()
	q.arrived()
	return nil
}

// enqueue leaves a request to the workers. It does not block.
func (c *conn) enqueue(q *request) {
	c.mu.Lock()
	c.enqueueLocked(q)
	c.mu.Unlock()
}

func (c *conn) enqueueLocked(q *request) {
	l := c.lane(q.Command)
	l.queue.push(q)
	if l.running < c.cfg.Workers {
		l.running++
		go c.work(l)
	}
}

// lane is a queue with workers of its own. Reads have one and changes another,
// so that a journal that is stuck under many writes keeps no read waiting.
type lane struct {
	queue   list // of requests that may begin
	running int  // workers
}

func (c *conn) lane(cmd proto.Command) *lane {
	if changes(cmd) || cmd == proto.CmdFlush {
		return &c.changers
	}
	return &c.readers
}

// work carries out requests of a lane until there are none.
func (c *conn) work(l *lane) {
	for {
		c.mu.Lock()
		q := l.queue.pop()
		if q == nil {
			l.running--
			c.mu.Unlock()
			return
		}
		c.mu.Unlock()
		c.carryOut(q)
	}
}

// carryOut runs one request and sends its answer.
func (c *conn) carryOut(q *request) {
	// What nobody waits for any more is not done, unless it changes the device.
	if q.void || c.out.dead.Load() && !changes(q.Command) {
		c.skip(q)
		return
	}
	a := &q.answer
	a.style = c.style
	err := c.attempt(q, a)
	if err != nil {
		if isPanic(err) {
			c.fail(err)
		}
		c.report(q, err)
		a.reset()
		a.fail(q, err)
		c.wstats.errors.Add(1)
	}
	if c.tap != nil {
		c.tapEnded(q, err)
	}
	c.finish(q) // before the answer: who has it may send an overlapping change at once
	c.trimHeld(q, a)
	c.out.send(a.take(q.held))
	clear(a.segs)
	a.segs = a.segs[:0]
	q.free()
}

// trimHeld gives back what was reserved for an answer that has become shorter.
func (c *conn) trimHeld(q *request, a *answer) {
	if n := a.memory(); n < q.held {
		spare := q.held - n
		q.held = n
		c.returned(spare)
	}
}

// skip ends a request without an answer.
func (c *conn) skip(q *request) {
	c.finish(q)
	c.sent(1, q.held)
	q.free()
}

// finish gives back what a request has held, but for the room for its answer.
func (c *conn) finish(q *request) {
	taken := q.payload.size()
	q.end()
	if taken > 0 {
		c.taken.take(-taken)
		c.wake()
	}
}

// attempt is perform, with a panic as an error.
func (c *conn) attempt(q *request, a *answer) (err error) {
	defer c.recovered(&err)
	if c.tap != nil {
		c.tapBegun(q)
	}
	return c.perform(q, a)
}

// perform carries q out and writes its answer to a. An error is not answered yet.
func (c *conn) perform(q *request, a *answer) error {
	off, n := int64(q.Offset), int64(q.Length)
	var err error
	switch q.Command {
	case proto.CmdRead:
		return c.read(q, a)
	case proto.CmdWrite:
		if err = c.dev.WriteAt(c.ctx, q.payload.b, off+int64(q.done), blockFlags(q.Flags)); err == nil {
			c.wstats.written.Add(q.Length)
		}
	case proto.CmdFlush:
		err = c.dev.Flush(c.ctx)
	case proto.CmdTrim:
		err = c.dev.Trim(c.ctx, off, n, blockFlags(q.Flags))
	case proto.CmdCache:
		err = c.dev.Cache(c.ctx, off, n)
	case proto.CmdWriteZeroes:
		err = c.dev.WriteZeroes(c.ctx, off, n, blockFlags(q.Flags))
	case proto.CmdBlockStatus:
		return c.blockStatus(q, a)
	}
	if err == nil {
		a.done(q)
	}
	return err
}

func blockFlags(f proto.CommandFlags) (b block.Flags) {
	if f&proto.CmdFlagFUA != 0 {
		b |= block.FUA
	}
	if f&proto.CmdFlagNoHole != 0 {
		b |= block.NoHole
	}
	if f&proto.CmdFlagFastZero != 0 {
		b |= block.FastZero
	}
	return b
}

// read answers a read that may wait for the disk.
func (c *conn) read(q *request, a *answer) error {
	if c.holes && q.Length >= longRead && q.Flags&proto.CmdFlagDF == 0 {
		return c.readSparse(q, a)
	}
	if err := c.readData(q, a, q.Offset, int(q.Length), proto.ReplyFlagDone); err != nil {
		return err
	}
	c.wstats.read.Add(q.Length)
	return nil
}

// readData answers with one piece of data.
func (c *conn) readData(q *request, a *answer, off uint64, n int, last proto.ReplyFlags) error {
	head := c.style.dataHeader()
	buf := getBuffer(head + n)
	if err := c.dev.ReadAt(c.ctx, buf.b[head:], int64(off)); err != nil {
		buf.put()
		return err
	}
	c.style.appendData(buf.b[:0], &q.Request, off, n, last)
	a.add(segment{buf: buf, hi: head + n})
	return nil
}

// readSparse answers a long read with data and holes. An error after data has
// been read is an error chunk behind it. proto.md, NBD_CMD_READ, "Structured replies".
func (c *conn) readSparse(q *request, a *answer) error {
	off, end := q.Offset, q.Offset+q.Length
	for off < end {
		n, hole := end-off, false
		err := c.dev.Extents(c.ctx, int64(off), int64(end-off), 0, func(x block.Extent) bool {
			n, hole = min(n, uint64(x.Length)), x.State&block.Zero != 0
			return false
		})
		if err != nil {
			return err
		}
		if hole {
			a.hole(q, off, uint32(n))
		} else if err := c.readPiece(q, a, off, int(n)); err != nil {
			return err
		}
		off += n
	}
	c.wstats.read.Add(q.Length)
	a.done(q)
	return nil
}

// readPiece answers with data, from the page cache if it is there.
func (c *conn) readPiece(q *request, a *answer, off uint64, n int) error {
	if c.zeroCopy && n >= longRead {
		if s, ok := c.dev.Range(int64(off), int64(n), false); ok {
			head := getBuffer(maxHeader)
			head.b = c.style.appendData(head.b[:0], &q.Request, off, n, 0)
			a.add(segment{buf: head, hi: len(head.b)})
			a.add(segment{span: s})
			return nil
		}
	}
	return c.readData(q, a, off, n, 0)
}
