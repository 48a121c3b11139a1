package transmission

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"nbd.example/nbd/proto"
)

const (
	inputSize = 64 << 10
	// directRead is what must be missing of a payload for it to be read
	// straight into the caller's buffer. Less comes through the input buffer,
	// together with what follows.
	directRead = 16 << 10
	// maxErrorChunk bounds the payload of an error chunk: six bytes, a message,
	// and what an unknown type may add.
	maxErrorChunk = 64 << 10
)

// demuxInput is what has been read and not yet taken apart. It belongs to the
// reader, but for knock.
type demuxInput struct {
	buf     []byte
	r, w    int // buf[r:w] is unread
	ext     []proto.Extent
	payload []byte
	knock   bool // abandon has set a deadline; guarded by Demux.mu
}

func (in *demuxInput) init(early []byte) {
	in.buf = make([]byte, max(inputSize, len(early)))
	in.w = copy(in.buf, early)
}

func (d *Demux) readLoop() {
	err := d.readReplies()
	d.fail(d.verdict(err))
	close(d.ended)
}

// verdict says what the end of the input means.
func (d *Demux) verdict(err error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case errors.Is(err, errPeer):
		return fmt.Errorf("%w: %w: %w", ErrConnectionLost, ErrPeer, err)
	case d.shutdown && !d.closing && d.inFlight > 0:
		return fmt.Errorf("%w: %w", ErrConnectionLost, ErrShuttingDown)
	case d.shutdown && !d.closing:
		return ErrShuttingDown
	case d.disc:
		return ErrDisconnected
	case err == io.EOF:
		return fmt.Errorf("%w: the server closed it", ErrConnectionLost)
	}
	return fmt.Errorf("%w: read: %w", ErrConnectionLost, err)
}

// errPeer marks an error that is the server's fault.
var errPeer = errors.New("peer sent")

func peerSent(format string, args ...any) error {
	return fmt.Errorf("%w %w", errPeer, fmt.Errorf(format, args...))
}

// readReplies reads until the connection ends. io.EOF means between two replies.
func (d *Demux) readReplies() error {
	for {
		b, err := d.need(4)
		if err != nil {
			if d.in.r == d.in.w && err == io.ErrUnexpectedEOF {
				return io.EOF
			}
			return err
		}
		magic := binary.BigEndian.Uint32(b)
		switch {
		case magic == proto.MagicSimpleReply && !d.extended:
			err = d.simpleReply()
		case magic == proto.MagicStructuredReply && d.chunked && !d.extended:
			err = d.structuredReply()
		case magic == proto.MagicExtendedReply && d.extended:
			err = d.extendedReply()
		default:
			err = peerSent("a reply that begins with %#08x", magic)
		}
		if err != nil {
			return err
		}
	}
}

func (d *Demux) simpleReply() error {
	b, err := d.need(proto.SimpleReplySize)
	if err != nil {
		return err
	}
	var r proto.SimpleReply
	proto.ParseSimpleReply(b, &r)
	d.in.r += proto.SimpleReplySize
	c, err := d.lookup(r.Cookie)
	if err != nil {
		return err
	}
	if c.reply.begun {
		return peerSent("a simple reply to %v in the middle of its chunks", c.Command)
	}
	if r.Error != proto.OK {
		// The specification forbids a simple reply to a structured read even for
		// an error, but nbd-server sends it, and it can be read one way only.
		d.noteErrno(r.Error)
		d.conclude(c, newRequestError(c.Command, r.Error))
		return nil
	}
	switch c.Command {
	case proto.CmdRead:
		if d.chunked {
			return peerSent("a simple reply with data, though structured replies were agreed on")
		}
		if err := d.receive(c, 0, int(c.Length)); err != nil {
			return err
		}
	case proto.CmdBlockStatus:
		return peerSent("a simple reply to %v", c.Command)
	}
	d.conclude(c, nil)
	return nil
}

func (d *Demux) structuredReply() error {
	b, err := d.need(proto.StructuredReplySize)
	if err != nil {
		return err
	}
	var ch proto.Chunk
	proto.ParseChunk(b, &ch)
	d.in.r += proto.StructuredReplySize
	c, err := d.lookup(ch.Cookie)
	if err != nil {
		return err
	}
	return d.chunk(c, &ch)
}

func (d *Demux) extendedReply() error {
	b, err := d.need(proto.ExtendedReplySize)
	if err != nil {
		return err
	}
	var ch proto.Chunk
	proto.ParseExtendedChunk(b, &ch)
	d.in.r += proto.ExtendedReplySize
	c, err := d.lookup(ch.Cookie)
	if err != nil {
		return err
	}
	if ch.Offset != c.Offset {
		return peerSent("an extended reply for offset %d to %v at offset %d", ch.Offset, c.Command, c.Offset)
	}
	return d.chunk(c, &ch)
}

// lookup finds the call that a cookie belongs to. Its reply's state is the
// reader's; its Data is not, see receive.
func (d *Demux) lookup(cookie uint64) (*demuxCall, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.err != nil {
		return nil, d.err
	}
	if i := cookie & (1<<32 - 1); i < uint64(len(d.slots)) {
		if c := &d.slots[i]; c.active && !c.over && !c.queued && c.cookie == cookie {
			return c, nil
		}
	}
	return nil, peerSent("a reply with cookie %#x, which no request in flight has", cookie)
}

// noteErrno sees what concerns the whole connection.
func (d *Demux) noteErrno(e proto.Errno) {
	if e == proto.ESHUTDOWN {
		d.mu.Lock()
		d.shutdown = true
		d.mu.Unlock()
	}
}

// need returns the next n bytes, at most inputSize, without taking them. They
// are valid until the next read. If the connection ends before, the error is
// io.ErrUnexpectedEOF.
func (d *Demux) need(n int) ([]byte, error) {
	in := &d.in
	for in.w-in.r < n {
		if err := d.fill(); err != nil {
			return nil, err
		}
	}
	return in.buf[in.r : in.r+n], nil
}

// fill reads more into the input buffer, which is not full.
func (d *Demux) fill() error {
	in := &d.in
	if in.r == in.w {
		in.r, in.w = 0, 0
	} else if in.r > 0 && len(in.buf)-in.w < len(in.buf)/2 {
		in.w = copy(in.buf, in.buf[in.r:in.w])
		in.r = 0
	}
	for tries := 0; tries < 100; tries++ {
		n, err := d.conn.Read(in.buf[in.w:])
		in.w += n
		switch {
		case n > 0:
			return nil
		case err == io.EOF:
			return io.ErrUnexpectedEOF
		case err != nil:
			return err
		}
	}
	return io.ErrNoProgress
}

// receive takes n bytes of payload into c.Data[at:], or throws them away if
// nobody wants them any more. The caller has checked the range.
func (d *Demux) receive(c *demuxCall, at, n int) error {
	in := &d.in
	for n > 0 {
		k := min(in.w-in.r, n)
		switch {
		case k > 0:
			d.mu.Lock()
			if c.wanted() {
				copy(c.Data[at:], in.buf[in.r:in.r+k])
			}
			d.mu.Unlock()
			in.r += k
		case n < directRead:
			if err := d.fill(); err != nil {
				return err
			}
		default:
			var err error
			if k, err = d.readInto(c, at, n); err != nil {
				return err
			}
		}
		at, n = at+k, n-k
	}
	return nil
}

// wanted reports whether c.Data may be written. Called with mu held.
func (c *demuxCall) wanted() bool { return !c.abandoned && !c.over }

// readInto does one read of at most n bytes straight into c.Data[at:].
func (d *Demux) readInto(c *demuxCall, at, n int) (int, error) {
	if !d.begin(c) {
		if err := d.fill(); err != nil {
			return 0, err
		}
		return 0, nil
	}
	k, err := d.conn.Read(c.Data[at : at+n])
	knocked := d.end(c)
	switch {
	case k > 0, knocked && errors.Is(err, os.ErrDeadlineExceeded):
		return k, nil
	case err == io.EOF:
		return 0, io.ErrUnexpectedEOF
	}
	return 0, err
}

// begin marks c.Data as used by the reader, and reports false if it is not
// wanted any more.
func (d *Demux) begin(c *demuxCall) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !c.wanted() {
		return false
	}
	c.use |= usedByReader
	return true
}

// end ends what begin has begun, and reports whether somebody has knocked.
func (d *Demux) end(c *demuxCall) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	knocked := d.in.knock
	if knocked {
		d.in.knock = false
		d.conn.SetReadDeadline(time.Time{})
	}
	d.letGo(c, usedByReader)
	return knocked
}
