package transmission

import (
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"nbd.example/nbd/proto"
)

const (
	// outputSize is how much one write carries, large payloads aside.
	outputSize = 128 << 10
	// maxCopied is the longest payload that is copied beside its header. Copying
	// so much is cheaper than another buffer in the system call, and frees the
	// caller's buffer at once.
	maxCopied = 16 << 10
	// maxFilter bounds the contexts of one filter.
	maxFilter = 1024
)

// demuxOutput is one batch on its way. It belongs to whoever has set
// Demux.writing.
type demuxOutput struct {
	buf    []byte       // headers and short payloads; never grows
	vec    net.Buffers  // what one system call takes: parts of buf and payloads
	owners []*demuxCall // of the payloads in vec; nil for parts of buf
	rest   []byte       // payload that follows the batch in copied pieces; guarded by Demux.mu
	tail   *demuxCall   // whose it is; nil if it is ours; guarded by Demux.mu
	knock  bool         // abandon has set a deadline; guarded by Demux.mu
}

func (o *demuxOutput) init() { o.buf = make([]byte, 0, outputSize) }

// writeLoop sends what nobody else has sent.
func (d *Demux) writeLoop() {
	defer close(d.wrote)
	d.mu.Lock()
	defer d.mu.Unlock()
	for {
		for d.err == nil && (d.writing || len(d.queue) == 0 && !d.discDue()) {
			d.wake.Wait()
		}
		if d.err != nil {
			return
		}
		d.writing = true
		d.send()
		if d.err == nil && d.discDue() {
			d.sendDisc()
		}
		d.writing = false
	}
}

// discDue reports whether it is time for NBD_CMD_DISC.
func (d *Demux) discDue() bool {
	return (d.closing || d.shutdown) && d.inFlight == 0 && !d.disc
}

// sendDisc sends NBD_CMD_DISC, the last message. Its fields are zero.
func (d *Demux) sendDisc() {
	d.disc = true
	d.out.buf = d.header(d.out.buf[:0], &proto.Request{Command: proto.CmdDisc})
	d.mu.Unlock()
	_, err := d.conn.Write(d.out.buf)
	d.mu.Lock()
	if err != nil {
		d.broken(err)
	}
}

func (d *Demux) header(b []byte, r *proto.Request) []byte {
	if d.extended {
		return proto.AppendExtendedRequest(b, r)
	}
	return proto.AppendRequest(b, r)
}

// send empties the queue. It is called with mu held, and releases it while it
// writes. An error ends the connection.
func (d *Demux) send() {
	for d.err == nil && len(d.queue) > 0 {
		d.gather()
		if err := d.writeBatch(); err != nil {
			d.release(len(d.out.owners))
			d.releaseTail()
			d.broken(err)
			return
		}
	}
}

// broken calls fail from a place that holds mu.
func (d *Demux) broken(err error) {
	d.mu.Unlock()
	d.fail(fmt.Errorf("%w: write: %w", ErrConnectionLost, err))
	d.mu.Lock()
}

// gather takes requests from the queue into one batch.
func (d *Demux) gather() {
	o := &d.out
	o.buf, o.vec, o.owners, o.tail = o.buf[:0], o.vec[:0], o.owners[:0], nil
	o.rest = nil
	begun := 0 // where the part of buf begins that is not in vec yet
	cut := func(owner *demuxCall, payload []byte) {
		o.vec = append(o.vec, o.buf[begun:len(o.buf):len(o.buf)], payload)
		o.owners = append(o.owners, nil, owner)
		begun = len(o.buf)
	}
	n := 0
	for _, c := range d.queue {
		size := c.payload()
		if len(o.buf)+proto.ExtendedRequestSize+min(size, maxCopied) > cap(o.buf) || len(o.vec) > 256 || o.rest != nil {
			break
		}
		n++
		c.queued = false
		o.buf = d.appendRequest(o.buf, c)
		switch {
		case c.Command != proto.CmdWrite:
		case size <= maxCopied:
			o.buf = append(o.buf, c.Data...)
		case d.vector:
			c.use |= usedByWriter
			cut(c, c.Data)
		default:
			c.use |= usedByWriter
			o.tail, o.rest = c, c.Data
		}
	}
	if begun < len(o.buf) {
		o.vec, o.owners = append(o.vec, o.buf[begun:]), append(o.owners, nil)
	}
	rest := copy(d.queue, d.queue[n:])
	clear(d.queue[rest:])
	d.queue = d.queue[:rest]
}

func (d *Demux) appendRequest(b []byte, c *demuxCall) []byte {
	r := proto.Request{Flags: c.Flags &^ proto.CmdFlagPayloadLen, Command: c.Command, Cookie: c.cookie, Offset: c.Offset, Length: c.Length}
	if n := c.payload(); d.extended && (n > 0 || c.Command == proto.CmdWrite) {
		r.Flags |= proto.CmdFlagPayloadLen
		r.Length = uint64(n)
	}
	b = d.header(b, &r)
	if len(c.Filter) > 0 {
		b = proto.AppendStatusFilter(b, &proto.StatusFilter{Length: c.Length, Contexts: c.Filter})
	}
	return b
}

// writeBatch writes the batch. It is called with mu held, and releases it while
// it writes.
func (d *Demux) writeBatch() error {
	o := &d.out
	all := o.vec // WriteTo eats o.vec from the front
	for len(o.vec) > 0 {
		d.mu.Unlock()
		_, err := o.vec.WriteTo(d.conn)
		d.mu.Lock()
		knocked := d.out.knock
		if knocked {
			d.out.knock = false
			d.conn.SetWriteDeadline(time.Time{})
		}
		d.release(len(all) - len(o.vec))
		if err == nil {
			break
		}
		if !knocked || !errors.Is(err, os.ErrDeadlineExceeded) {
			o.vec = all[:0]
			return err
		}
		d.loosen()
	}
	clear(all)
	o.vec = all[:0]
	if o.rest != nil {
		return d.writePieces()
	}
	return nil
}

// release lets go of the first n buffers of the batch.
func (d *Demux) release(n int) {
	for i, c := range d.out.owners[:n] {
		if c != nil {
			d.out.owners[i] = nil
			d.letGo(c, usedByWriter)
		}
	}
}

// letGo ends one use of c's buffer. It is called with mu held, and releases it
// while it calls back.
func (d *Demux) letGo(c *demuxCall, by uint8) {
	c.use &^= by
	err := c.err
	if done := d.settle(c); done != nil {
		d.mu.Unlock()
		done(err)
		d.mu.Lock()
	}
}

// loosen replaces what is left of abandoned payloads by copies.
func (d *Demux) loosen() {
	o := &d.out
	gone := len(o.owners) - len(o.vec)
	for i, c := range o.owners[gone:] {
		if c != nil && c.abandoned {
			o.vec[i] = append([]byte(nil), o.vec[i]...)
			o.owners[gone+i] = nil
			d.letGo(c, usedByWriter)
		}
	}
}

// writePieces sends what follows the batch through buf, so that the caller's
// buffer is never inside a write that cannot be interrupted: TLS takes a write's
// timeout as its end. It is called with mu held, and releases it while it writes.
func (d *Demux) writePieces() error {
	o := &d.out
	for len(o.rest) > 0 {
		k := min(len(o.rest), cap(o.buf))
		o.buf = append(o.buf[:0], o.rest[:k]...)
		o.rest = o.rest[k:]
		d.mu.Unlock()
		_, err := d.conn.Write(o.buf)
		d.mu.Lock()
		if err != nil {
			return err
		}
	}
	o.rest = nil
	d.releaseTail()
	return nil
}

func (d *Demux) releaseTail() {
	if c := d.out.tail; c != nil {
		d.out.tail = nil
		d.letGo(c, usedByWriter)
	}
}
