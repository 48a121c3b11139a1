package transmission

import (
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"nbd.example/nbd/block"
)

// segment is a stretch of output: bytes of a buffer, or a span of a file or of a
// mapping.
type segment struct {
	buf      *buffer
	lo, hi   int  // what of buf is still to be sent
	shared   bool // a later segment has a part of buf, and gives it back
	span     block.Span
	requests int // that are answered when this has been sent
	held     int // bytes of the budget that are free then
}

// inFile reports whether s is a stretch of a file, which has a system call of
// its own.
func (s *segment) inFile() bool { return s.span.Len > 0 && s.span.Address() == 0 }

// left returns how many bytes are still to be sent.
func (s *segment) left() int { return s.hi - s.lo + int(s.span.Len) }

// skip takes n bytes off the front.
func (s *segment) skip(n int) {
	if s.span.Len > 0 {
		s.span = s.span.Advance(int64(n))
	} else {
		s.lo += n
	}
}

// put gives the buffer back, if s is the one to do it.
func (s *segment) put() {
	if !s.shared {
		s.buf.put()
	}
	s.buf = nil
}

// output is the sending half of a connection. It has one owner at a time:
// whoever finds it idle sends, the others append to what the owner sends next.
// Nobody who appends ever waits for the peer. What the socket does not take at
// once is left to a goroutine of its own.
type output struct {
	conn  net.Conn
	raw   syscall.RawConn // nil if conn is no plain socket: then only the goroutine sends
	stuck time.Duration   // how long the peer may take nothing; 0 for ever
	// copies says that spans of files go through a buffer: see loopback.
	copies bool
	// sent is called with what a segment was worth, when it has been sent or
	// thrown away. avoid is called with a span that could not be sent.
	sent  func(requests, held int)
	avoid func(block.Span)

	mu    sync.Mutex
	queue []segment
	busy  bool
	err   error // set once: nothing more is sent

	// The owner's own:
	sending  []segment // taken from queue
	next     int       // index of the first one that is not sent
	progress error
	pieceIn  *buffer               // of the span at hand, if it is copied
	piece    []byte                // what of pieceIn is to be sent
	once     func(fd uintptr) bool // step, and never again; bound once
	write    func(fd uintptr) bool // writable, bound once

	bytes atomic.Uint64
	dead  atomic.Bool // err is set
}

// init binds the steps once, so that sending takes no memory.
func (o *output) init() {
	o.write = o.writable
	o.once = func(fd uintptr) bool { o.step(fd); return true }
}

// errSpan ends a connection whose reply broke off in the middle.
var errSpan = errors.New("the file ended, or could not be read, in the middle of a reply")

// send takes over segs' buffers and sends them in order. It does not keep segs.
func (o *output) send(segs []segment) {
	o.mu.Lock()
	if o.err != nil {
		o.mu.Unlock()
		o.discard(segs)
		return
	}
	if o.busy {
		joined := o.join(segs)
		if !joined {
			o.queue = append(o.queue, segs...)
		}
		o.mu.Unlock()
		if joined {
			segs[0].put()
			o.sent(0, segs[0].held)
		}
		return
	}
	o.queue = append(o.queue, segs...)
	o.busy = true
	o.mu.Unlock()
	if o.raw == nil {
		go o.stream()
		return
	}
	if o.pump() {
		return
	}
	go o.block()
}

// shortPiece is how long a segment may be, in bytes, that is copied behind the one
// before it while both wait. A client that takes no answers must not make each of
// them hold a buffer of its own.
const shortPiece = 1 << 10

// copySize is how much of a span of n bytes is copied at a time, in bytes.
func copySize(n int64) int { return int(min(n, largeSize-headroom)) }

// dropPiece gives the buffer of a copied span back.
func (o *output) dropPiece() {
	o.pieceIn.put()
	o.pieceIn, o.piece = nil, nil
}

// join copies a single short segment behind what waits, and reports whether it has.
// The caller holds o.mu.
func (o *output) join(segs []segment) bool {
	if len(segs) != 1 || len(o.queue) == 0 {
		return false
	}
	s, last := &segs[0], &o.queue[len(o.queue)-1]
	n := s.hi - s.lo
	if s.buf == nil || s.shared || n > shortPiece || last.buf == nil || last.shared || cap(last.buf.b)-last.hi < n {
		return false
	}
	copy(last.buf.b[last.hi:last.hi+n], s.buf.b[s.lo:s.hi])
	last.hi += n
	last.requests += s.requests
	return true
}

// keepSegments is how much room for segments an output at rest keeps.
const keepSegments = 256

// take moves the queue to the owner, or gives up ownership if there is nothing.
func (o *output) take() bool {
	o.mu.Lock()
	clear(o.sending)
	o.sending, o.queue, o.next = o.queue, o.sending[:0], 0
	var lost []segment
	if o.err != nil { // what is left after a failure goes nowhere
		lost, o.sending = o.sending, nil
	}
	more := len(o.sending) > 0
	if !more && cap(o.sending)+cap(o.queue) > keepSegments { // a connection at rest holds little
		o.sending, o.queue = nil, nil
	}
	o.busy = more // if not, somebody else may own o from the next line on
	o.mu.Unlock()
	o.discard(lost)
	return more
}

// pump sends until nothing is left, and reports false if the socket is full.
func (o *output) pump() bool {
	for {
		for o.next < len(o.sending) {
			if err := o.raw.Write(o.once); err != nil {
				o.progress = err
			}
			switch o.progress {
			case nil:
			case syscall.EAGAIN:
				return false
			default:
				o.fail(o.progress)
			}
		}
		if !o.take() {
			return true
		}
	}
}

// block sends what a full socket did not take, waiting as it must.
func (o *output) block() {
	for {
		if o.stuck > 0 {
			o.conn.SetWriteDeadline(time.Now().Add(o.stuck))
		}
		if err := o.failure(); err != nil { // asked after the deadline is set: kill does it the other way round
			o.progress = err
		} else if err := o.raw.Write(o.write); err != nil {
			o.progress = o.explain(err)
		}
		if o.stuck > 0 {
			o.conn.SetWriteDeadline(time.Time{})
		}
		if o.progress != nil {
			o.fail(o.progress)
		}
		if o.pump() {
			return
		}
	}
}

// writable sends once and asks to be called again when the socket has room.
func (o *output) writable(fd uintptr) bool {
	o.step(fd)
	return o.progress != syscall.EAGAIN
}

func (o *output) explain(err error) error {
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return errStuck
	}
	return err
}

var errStuck = errors.New("the client has taken nothing for too long")

// advance accounts for n bytes that the socket took.
func (o *output) advance(n int) {
	o.bytes.Add(uint64(n))
	for n > 0 {
		s := &o.sending[o.next]
		k := min(n, s.left())
		s.skip(k)
		n -= k
		if s.left() == 0 {
			o.finish()
		}
	}
}

// finish gives back the first unsent segment.
func (o *output) finish() {
	s := &o.sending[o.next]
	o.next++
	s.put()
	o.sent(s.requests, s.held)
}

// discard gives segments back unsent.
func (o *output) discard(segs []segment) {
	for i := range segs {
		segs[i].put()
		o.sent(segs[i].requests, segs[i].held)
	}
}

// fail throws away all that is not sent, and all that will come. Only the owner
// calls it. A peer that has hung up may have left requests, which are still
// read; after any other fault the reader is woken to end.
func (o *output) fail(err error) {
	if !peerLeft(err) {
		o.conn.SetReadDeadline(time.Unix(1, 0))
	}
	o.mu.Lock()
	if o.err == nil {
		o.err = err
	}
	o.dead.Store(true)
	queue := o.queue
	o.queue = nil
	o.mu.Unlock()
	o.dropPiece()
	o.discard(o.sending[o.next:])
	o.next = len(o.sending)
	o.discard(queue)
}

// kill makes the output fail from the outside, whoever owns it, and wakes the
// owner and the reader. It does not close the connection, whose descriptor would
// then be another's.
func (o *output) kill(err error) {
	o.mu.Lock()
	if o.err == nil {
		o.err = err
	}
	o.dead.Store(true)
	o.mu.Unlock()
	o.conn.SetDeadline(time.Unix(1, 0))
}

// peerLeft tells an error that says that the peer has hung up.
func peerLeft(err error) bool {
	return errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, io.ErrClosedPipe)
}

// failure returns why nothing more is sent, or nil.
func (o *output) failure() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.err
}

// stream is the owner of an output that is no plain socket.
func (o *output) stream() {
	for o.take() {
		for o.next < len(o.sending) {
			s := &o.sending[o.next]
			if o.stuck > 0 {
				o.conn.SetWriteDeadline(time.Now().Add(o.stuck))
			}
			n, err := 0, o.failure()
			if err == nil {
				n, err = o.conn.Write(s.buf.b[s.lo:s.hi])
			}
			if err != nil {
				o.fail(o.explain(err))
				break
			}
			o.advance(n)
		}
	}
}
