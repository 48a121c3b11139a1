package handshake

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

const (
	// startBuffer holds every message of an ordinary negotiation, in bytes.
	startBuffer = 4 << 10
	// maxData is the longest data of an option or a reply that is looked at, in
	// bytes: room for a name and some fifteen queries of the longest size.
	maxData = 64 << 10
	// flushAt bounds the replies that wait for one write, in bytes.
	flushAt = 64 << 10
)

var buffers = sync.Pool{New: func() any { return new([startBuffer]byte) }}

// wire is a connection with what was read ahead and what is to be written.
// One read may bring several messages; what is left at the end goes to the
// transmission phase.
type wire struct {
	conn       net.Conn
	start, end int // the bytes of buf that are not yet used
	buf        []byte
	first      *[startBuffer]byte // goes back to the pool; buf may have outgrown it
	out        []byte
	outFirst   *[startBuffer]byte
}

func (w *wire) init(conn net.Conn) {
	w.conn = conn
	w.first, w.outFirst = buffers.Get().(*[startBuffer]byte), buffers.Get().(*[startBuffer]byte)
	w.buf, w.out = w.first[:], w.outFirst[:0]
}

// release gives the buffers back. The wire cannot be used any more.
func (w *wire) release() {
	if w.first != nil {
		buffers.Put(w.first)
		buffers.Put(w.outFirst)
	}
	w.first, w.outFirst, w.buf, w.out = nil, nil, nil, nil
	w.start, w.end = 0, 0
}

func (w *wire) buffered() int { return w.end - w.start }

// early copies what was read ahead.
func (w *wire) early() []byte {
	if w.buffered() == 0 {
		return nil
	}
	return append([]byte(nil), w.buf[w.start:w.end]...)
}

// peek returns the next n bytes without using them up. They are good until the
// next call that reads. io.EOF means that the peer hung up before the first.
func (w *wire) peek(n int) ([]byte, error) {
	for w.buffered() < n {
		w.makeRoom(n)
		m, err := w.conn.Read(w.buf[w.end:])
		w.end += m
		if err != nil && w.buffered() < n {
			if w.buffered() > 0 && errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
	}
	return w.buf[w.start : w.start+n], nil
}

// makeRoom makes it possible to read on towards n bytes. The buffer grows only
// as bytes arrive: an announced length takes no memory.
func (w *wire) makeRoom(n int) {
	if w.start == w.end {
		w.start, w.end = 0, 0
	}
	if w.start+n <= len(w.buf) || (w.start == 0 && w.end < len(w.buf)) {
		return
	}
	to := w.buf
	if w.buffered() == len(w.buf) {
		to = make([]byte, 2*len(w.buf))
	}
	w.end = copy(to, w.buf[w.start:w.end])
	w.start, w.buf = 0, to
}

// skip uses up n bytes that were peeked at.
func (w *wire) skip(n int) { w.start += n }

// discard reads n bytes and throws them away, in bounded memory.
func (w *wire) discard(n int64) error {
	for n > 0 {
		if w.buffered() == 0 {
			_, err := w.peek(1)
			if errors.Is(err, io.EOF) {
				err = io.ErrUnexpectedEOF
			}
			if err != nil {
				return fmt.Errorf("%w with %d bytes of data to come", err, n)
			}
		}
		m := min(n, int64(w.buffered()))
		w.skip(int(m))
		n -= m
	}
	return nil
}

// flush writes what has gathered, in one write.
func (w *wire) flush() error {
	if len(w.out) == 0 {
		return nil
	}
	_, err := w.conn.Write(w.out)
	w.out = w.out[:0]
	return err
}

// guard bounds the use of a connection by a context: its deadline becomes the
// connection's, its cancellation wakes whoever reads or writes.
type guard struct {
	conn  net.Conn
	bound bool          // a deadline was set
	stop  func() bool   // nil if the context cannot be cancelled
	woken chan struct{} // closed once the cancellation has been passed on
}

func (g *guard) begin(ctx context.Context, conn net.Conn) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	g.conn = conn
	if d, ok := ctx.Deadline(); ok {
		if err := conn.SetDeadline(d); err != nil {
			return fmt.Errorf("setting the connection's deadline: %w", err)
		}
		g.bound = true
	}
	if ctx.Done() == nil {
		return nil
	}
	woken := make(chan struct{})
	g.woken = woken
	g.stop = context.AfterFunc(ctx, func() {
		defer close(woken)
		if conn.SetDeadline(time.Unix(1, 0)) != nil {
			conn.Close()
		}
	})
	return nil
}

// end lets go of the connection and leaves it without a deadline.
func (g *guard) end() {
	if g.stop != nil && !g.stop() {
		<-g.woken
		g.bound = true
	}
	if g.bound {
		g.conn.SetDeadline(time.Time{})
	}
	*g = guard{}
}
