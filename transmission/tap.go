package transmission

import "nbd.example/nbd/proto"

// Tap is told of every request of a connection, and of how it was answered: a
// transaction log is one. Connections of one export may share a Tap, so that its
// methods are called concurrently. They run where requests are served: what they
// take, clients wait for, and they must not wait for a client themselves.
//
// The order of calls is one in which the requests can be carried out again. A
// change is told when no change that overlaps it is under way, on any
// connection of the [Group], and before any that is younger; the answer to a
// request is told before it is sent, so that whatever a client asks for because of an
// answer comes later.
//
// Told are requests whose payload has come in whole, and that were begun; those
// that a client left behind when it hung up, and that change nothing, are not.
type Tap interface {
	// Payloads reports whether the Tap wants what clients write. It is asked
	// once for each connection. If so, writes are collected in memory before they are
	// carried out.
	Payloads() bool
	// Begun is called before a request is carried out. payload is what it
	// writes, nil for other commands, and nil if Payloads is false. It is valid
	// during the call, and if Begun returns true until the Tap has called
	// owner.Release, once, from any goroutine. owner is nil if payload is, and if much of
	// [Config.Memory] is taken, where what is kept counts. NBD_CMD_DISC has no Ended.
	Begun(r proto.Request, payload []byte, owner interface{ Release() }) (kept bool)
	// Ended is called when the request with that cookie, of the same connection,
	// has its answer.
	Ended(cookie uint64, e proto.Errno)
	// Answered is both at once, for a request that was answered without waiting.
	// A write that was refused has no payload, whatever Payloads says.
	Answered(r proto.Request, payload []byte, e proto.Errno)
}

// tapAnswered tells of a request that the reader has answered with success.
func (c *conn) tapAnswered(r *proto.Request, payload []byte) {
	if !c.payloads {
		payload = nil
	}
	c.tap.Answered(*r, payload, proto.OK)
}

// tapBegun tells of a request that a worker carries out.
func (c *conn) tapBegun(q *request) {
	if !c.payloads || q.Command != proto.CmdWrite || q.payload == nil {
		c.tap.Begun(q.Request, nil, nil)
		return
	}
	// Twice it counts only until the request ends.
	m, n := c.cfg.Memory, q.payload.size()
	if m != nil && m.Used()+int64(n) > m.limit/2 {
		c.tap.Begun(q.Request, q.payload.b, nil)
		return
	}
	q.payload.share(m)
	if !c.tap.Begun(q.Request, q.payload.b, q.payload) {
		q.payload.Release()
	}
}

// tapEnded tells how a worker has answered a request.
func (c *conn) tapEnded(q *request, err error) {
	defer c.endOnPanic()
	e := proto.OK
	if err != nil {
		e = errnoOf(err, &q.Request)
	}
	c.tap.Ended(q.Cookie, e)
}
