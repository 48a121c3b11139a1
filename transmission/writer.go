package transmission

import "nbd.example/nbd/proto"

// writeCommand carries out a write in place if it can, or collects its payload
// for a worker. A write takes its place among the other changes when its payload
// is there: a client that stops in the middle of one keeps nobody waiting.
func (c *conn) writeCommand(r *proto.Request) error {
	if err := c.fence(false); err != nil {
		return err
	}
	q := newRequest(c, r)
	c.making = q
	switch {
	case !c.inPlace || r.Flags&proto.CmdFlagFUA != 0 || c.dev.Broken() != nil:
		return c.collect(q)
	case r.Length <= wholeWrite:
		return c.writeWhole(q)
	case c.payloads: // the tap wants it in one piece
		return c.collect(q)
	}
	return c.writeStream(q)
}

// written ends a change that the reader has made.
func (c *conn) written(q *request) {
	c.stats.BytesWritten += q.Length
	c.done(&q.Request)
	c.batch.written += q.Length
	c.making = nil
	q.free()
}

// writeNow writes p in place, unless older changes are in the way or it would
// have to wait.
func (c *conn) writeNow(q *request, p []byte, off uint64) bool {
	if !c.group.changes.TryAdd(&q.entry, int64(off), int64(len(p))) {
		return false
	}
	defer c.group.changes.Remove(&q.entry)
	ok := c.dev.TryWrite(p, int64(off))
	if c.tap != nil && ok && off+uint64(len(p)) == q.Offset+q.Length { // the last piece
		c.tapAnswered(&q.Request, p)
	}
	return ok
}

// writeWhole waits for all of a short payload and writes it.
func (c *conn) writeWhole(q *request) error {
	n := int(q.Length)
	for len(c.in.unread()) < n {
		if err := c.fill(); err != nil {
			return err
		}
	}
	if !c.writeNow(q, c.in.unread()[:n], q.Offset) {
		return c.collect(q)
	}
	c.in.skip(n)
	c.written(q)
	return nil
}

// writeStream writes a long payload as it comes in.
func (c *conn) writeStream(q *request) error {
	for q.done < q.Length {
		p := c.in.unread()
		at := q.Offset + q.done
		n := min(uint64(len(p)), q.Length-q.done)
		if n < q.Length-q.done {
			n = max(at, (at+n)&^(page-1)) - at
		}
		if n == 0 {
			if err := c.fill(); err != nil {
				return err
			}
			continue
		}
		if !c.writeNow(q, p[:n], at) {
			return c.collect(q)
		}
		c.in.skip(int(n))
		q.done += n
	}
	c.written(q)
	return nil
}

// collect reads what is left of q's payload into memory and leaves q to the
// workers. If that fails, q is left in c.making.
func (c *conn) collect(q *request) error {
	c.making = q
	n := int(q.Length - q.done)
	size := bufferSize(n)
	if !c.taken.reserve(size) {
		c.flush()
		reserved := false
		c.await(func() bool {
			reserved = c.taken.reserve(size)
			return reserved || c.doomed()
		})
		if !reserved {
			return errDoomed
		}
	}
	q.payload = getBuffer(n)
	p := q.payload.b
	k := copy(p, c.in.unread())
	c.in.skip(k)
	for k < n {
		c.fenced = false
		m, err := c.in.fillInto(p[k:])
		if err != nil {
			return err
		}
		k += m
	}
	c.making = nil
	if changes(q.Command) {
		q.order()
	}
	q.arrived()
	return nil
}

// abandon gives up the request whose payload did not come.
func (c *conn) abandon() {
	if q := c.making; q != nil {
		c.making = nil
		q.void = true
		q.arrived()
	}
}
