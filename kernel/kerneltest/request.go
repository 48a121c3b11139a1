package kerneltest

import (
	"bufio"
	"cmp"
	"fmt"
	"io"
	"iter"
	"sync"
	"syscall"
	"time"

	"nbd.example/nbd/proto"
)

// request is a request of the block layer.
type request struct {
	att     *attachment
	command proto.Command
	flags   proto.CommandFlags
	offset  int64
	length  int64
	data    []byte // what a write writes, and where a read puts it

	queue, tag int
	started    bool          // sent, and not to be sent again; guarded by the device's mutex
	done       chan struct{} // closed at the end
	err        error

	lock sync.Mutex // the driver's cmd->lock, taken before tx
	// The following are guarded by lock.
	conn     int // that it was sent on
	cookie   int // of that connection then
	inFlight bool
	requeued bool
	sent     bool // at least once
	ended    bool
	timer    *time.Timer
}

// cookie is a tag, unique over all queues, and the generation. (nbd_cmd_handle)
func (r *request) id(generation uint32) uint64 {
	return uint64(generation)<<32 | uint64(r.queue)<<16 | uint64(r.tag)
}

// requests goes through the requests that have a tag. The device's mutex is held.
func (att *attachment) requests() iter.Seq[*request] {
	return func(yield func(*request) bool) {
		for _, q := range att.queues {
			for i := range q.slots {
				if r := q.slots[i].req; r != nil && !yield(r) {
					return
				}
			}
		}
	}
}

// inFlight counts them. The device's mutex is held.
func (att *attachment) inFlight() (n int) {
	for range att.requests() {
		n++
	}
	return n
}

// do performs a request and waits for its end.
func (att *attachment) do(r *request) error {
	r.att, r.done = att, make(chan struct{})
	if !att.enter(r) {
		return syscall.EIO
	}
	r.dispatch()
	<-r.done
	att.d.mu.Lock()
	defer att.d.mu.Unlock()
	att.queues[r.queue].slots[r.tag].req = nil
	att.d.changed.Broadcast()
	return r.err
}

// enter gives a request its queue and its tag, once there is one.
func (att *attachment) enter(r *request) bool {
	d := att.d
	d.mu.Lock()
	defer d.mu.Unlock()
	r.queue = att.next % len(att.queues)
	att.next++
	for {
		if d.halted || d.att != att {
			return false
		}
		slots := &att.queues[r.queue].slots
		for i := range slots {
			if slots[i].req == nil && !att.frozen {
				r.tag, slots[i].req = i, r
				return true
			}
		}
		d.changed.Wait()
	}
}

// dispatch sends a request on its connection, on another one if that is dead, or on a
// new one if all are dead. (nbd_queue_rq, nbd_handle_cmd)
func (r *request) dispatch() {
	r.lock.Lock()
	defer r.lock.Unlock()
	r.requeued = false
	if r.ended {
		return
	}
	att, i := r.att, r.queue
	for {
		c := att.conns[i]
		c.tx.Lock()
		if !c.dead {
			r.send(c, i)
			c.tx.Unlock()
			return
		}
		next := att.find(i)
		c.tx.Unlock()
		if next >= 0 {
			i = next
			continue
		}
		if !att.waitForReconnect() {
			att.shutdown()
			r.end(syscall.EIO)
			return
		}
	}
}

// find returns the index of a connection in place of one that is dead, or -1. The tx of
// the dead one is held. (find_fallback)
func (att *attachment) find(index int) int {
	att.d.mu.Lock()
	defer att.d.mu.Unlock()
	if att.disconnected {
		return -1
	}
	c := att.conns[index]
	if c.fallback >= 0 && !att.conns[c.fallback].dead {
		return c.fallback
	}
	c.fallback = -1
	for i, other := range att.conns {
		if i != index && !other.dead {
			c.fallback = i
			break
		}
	}
	return c.fallback
}

// waitForReconnect waits until a connection lives, and reports whether one does.
func (att *attachment) waitForReconnect() bool {
	d := att.d
	d.mu.Lock()
	defer d.mu.Unlock()
	if att.a.DeadTimeout <= 0 {
		return false
	}
	over := false
	timer := time.AfterFunc(d.k.seconds(att.a.DeadTimeout), func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		over = true
		d.changed.Broadcast()
	})
	defer timer.Stop()
	for !att.disconnected && att.live == 0 && !d.halted {
		if over {
			return false
		}
		d.changed.Wait()
	}
	return !att.disconnected && !d.halted
}

// send sends a request. Its lock and the tx of the connection are held. (nbd_send_cmd)
func (r *request) send(c *conn, index int) {
	att, d := r.att, r.att.d
	att.deadline(c)
	d.mu.Lock()
	s := &att.queues[r.queue].slots[r.tag]
	s.generation++
	c.sent++
	if r.sent {
		att.resent++
	}
	header := proto.AppendRequest(nil, &proto.Request{
		Flags: r.flags, Command: r.command, Cookie: r.id(s.generation),
		Offset: uint64(r.offset), Length: uint64(r.length),
	})
	r.started = true
	r.startTimer()
	d.mu.Unlock()
	r.conn, r.cookie, r.sent = index, c.cookie, true
	_, err := c.socket.conn.Write(header)
	if err == nil && r.command == proto.CmdWrite {
		_, err = c.socket.conn.Write(r.data)
	}
	if err == nil {
		r.inFlight = true
		return
	}
	d.k.log.Error("Request send failed, requeueing", "device", d.index.Name(), "error", err)
	att.markDead(c, true)
	r.requeue()
}

// requeue has the request dispatched again. Its lock is held. (nbd_requeue_cmd)
func (r *request) requeue() {
	r.inFlight = false
	r.att.d.mu.Lock()
	r.started = false
	r.att.d.mu.Unlock()
	if !r.requeued {
		r.requeued = true
		go r.dispatch() // ends when the request does, at the latest with the kernel
	}
}

// end completes a request. Its lock is held.
func (r *request) end(err error) {
	if r.ended {
		return
	}
	r.ended, r.inFlight, r.err = true, false, err
	if r.timer != nil {
		r.timer.Stop()
	}
	close(r.done)
}

// fail fails a request that waits for its reply. Its lock is held. (nbd_clear_req)
func (r *request) fail() {
	if r.inFlight {
		r.end(syscall.EIO)
	}
}

// startTimer starts the request's time anew: the device's timeout, or 30 s. The lock of
// the request and the device's mutex are held.
func (r *request) startTimer() {
	if r.timer != nil {
		r.timer.Stop()
	}
	limit := r.att.d.k.seconds(cmp.Or(r.att.a.Timeout, 30*time.Second))
	r.timer = time.AfterFunc(limit, r.timedOut)
}

// timedOut is the end of the request's time. (nbd_xmit_timeout)
func (r *request) timedOut() {
	att, d := r.att, r.att.d
	again := func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		r.startTimer()
	}
	if !r.lock.TryLock() {
		// Somebody is at it: being sent, waiting for a connection, or its reply is coming.
		time.AfterFunc(d.k.cfg.Second/10, r.timedOut)
		return
	}
	defer r.lock.Unlock()
	if !r.inFlight || r.ended {
		return
	}
	c := att.conns[r.conn]
	d.mu.Lock()
	declare := len(att.conns) > 1 || att.a.Timeout > 0
	d.mu.Unlock()
	c.tx.Lock()
	same := c.cookie == r.cookie
	if declare && same {
		d.k.log.Error("Connection timed out, retrying", "device", d.index.Name())
		att.markDead(c, true)
	}
	c.tx.Unlock()
	if declare || !same {
		r.requeue()
		return
	}
	d.k.log.Info("Possible stuck request", "device", d.index.Name(), "command", r.command, "offset", r.offset)
	again()
}

// receive reads replies from a socket until that fails. (recv_work)
func (att *attachment) receive(index int, c *conn, s *socket) {
	att.receivers.Add(1)
	run := func() {
		defer att.receivers.Done()
		in := bufio.NewReaderSize(s.conn, 64<<10)
		var err error
		for err == nil {
			err = att.reply(index, in)
		}
		att.d.k.log.Error("Receive failed", "device", att.d.index.Name(), "error", err)
		c.tx.Lock()
		if c.socket == s { // the driver does not ask, and would kill the new one
			att.markDead(c, true)
		}
		c.tx.Unlock()
	}
	if !att.d.k.start(run) {
		att.receivers.Done()
	}
}

// reply takes one reply. What it cannot make sense of ends the connection.
func (att *attachment) reply(index int, in *bufio.Reader) error {
	var b [proto.SimpleReplySize]byte
	if _, err := io.ReadFull(in, b[:]); err != nil {
		return err
	}
	var reply proto.SimpleReply
	if !proto.ParseSimpleReply(b[:], &reply) {
		return fmt.Errorf("wrong magic: peer sent %x", b)
	}
	q, tag := int(uint16(reply.Cookie>>16)), int(uint16(reply.Cookie))
	var r *request
	var generation uint32
	att.d.mu.Lock()
	if q < len(att.queues) && tag < len(att.queues[q].slots) {
		r, generation = att.queues[q].slots[tag].req, att.queues[q].slots[tag].generation
	}
	att.d.mu.Unlock()
	if r == nil {
		return fmt.Errorf("unexpected reply: peer sent cookie %#x", reply.Cookie)
	}
	r.lock.Lock()
	defer r.lock.Unlock()
	switch {
	case !r.inFlight:
		return fmt.Errorf("suspicious reply: peer sent cookie %#x", reply.Cookie)
	case r.conn != index:
		return fmt.Errorf("unexpected reply from connection %d, want %d", index, r.conn)
	case generation != uint32(reply.Cookie>>32):
		return fmt.Errorf("double reply: peer sent generation %d, want %d", reply.Cookie>>32, generation)
	case reply.Error != 0:
		att.d.k.log.Error("Other side returned error", "device", att.d.index.Name(), "error", reply.Error)
		r.end(syscall.EIO)
		return nil
	}
	if r.command == proto.CmdRead {
		if _, err := io.ReadFull(in, r.data); err != nil {
			return att.lost(r, err)
		}
	}
	r.end(nil)
	return nil
}

// lost leaves a request whose data did not come to its timer, unless there will be no
// other connection. Its lock is held.
func (att *attachment) lost(r *request, err error) error {
	att.d.mu.Lock()
	over := att.disconnected || att.requested
	att.d.mu.Unlock()
	if over {
		r.end(syscall.EIO)
	}
	return err
}
