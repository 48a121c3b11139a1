package transmission

import "nbd.example/nbd/proto"

// change begins a request that changes the device: it waits for connections
// that are dead and not done, and takes its place among the other changes.
func (c *conn) change(r *proto.Request) (q *request, now bool, err error) {
	if err := c.fence(); err != nil {
		return nil, false, err
	}
	q = newRequest(c, r)
	return q, q.order(), nil
}

// writeCommand carries out a write in place if it can, or collects its payload
// for a worker.
func (c *conn) writeCommand(r *proto.Request) error {
	q, now, err := c.change(r)
	if err != nil {
		return err
	}
	c.making = q
	switch {
	case !now || !c.inPlace || r.Flags&proto.CmdFlagFUA != 0 || c.dev.Broken() != nil:
		return c.collect(q)
	case r.Length <= wholeWrite:
		return c.writeWhole(q)
	}
	return c.writeStream(q)
}

// written ends a change that the reader has made.
func (c *conn) written(q *request) {
	c.stats.BytesWritten += q.Length
	c.done(&q.Request)
	c.making = nil
	q.end()
	q.free()
}

// writeWhole waits for all of a short payload and writes it.
func (c *conn) writeWhole(q *request) error {
	n := int(q.Length)
	for len(c.in.unread()) < n {
		if err := c.fill(); err != nil {
			return err
		}
	}
	if !c.dev.TryWrite(c.in.unread()[:n], int64(q.Offset)) {
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
		if !c.dev.TryWrite(p[:n], int64(at)) {
			return c.collect(q)
		}
		c.in.skip(int(n))
		q.done += n
	}
	c.written(q)
	return nil
}

// collect reads what is left of q's payload into memory and leaves q to the
// workers.
func (c *conn) collect(q *request) error {
	c.making = q
	n := int(q.Length - q.done)
	if free := func() bool {
		t := c.taken.Load()
		return t == 0 || t+int64(n) <= int64(c.cfg.MaxBuffered)
	}; !free() {
		c.flush()
		c.await(free)
	}
	c.taken.Add(int64(n))
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
