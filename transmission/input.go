package transmission

import (
	"io"
	"net"
	"syscall"
)

// input is the receiving half of a connection. It belongs to the goroutine that
// runs Serve. It holds a buffer only while there are bytes in it: a connection
// at rest costs none.
type input struct {
	conn net.Conn
	raw  syscall.RawConn // nil if conn is no plain socket

	buf  *buffer
	r, w int // buf.b[r:w] is to be parsed

	into []byte // where the next read goes, if not into buf
	n    int
	err  error
	read func(fd uintptr) bool // readable, bound once
	// linger waits for a moment, if that may be worth it, and reports whether there
	// is something to read. Nil if conn cannot do that.
	linger func(deep bool) bool
	deep   bool // several requests came at once the last time
	// idle is called when there is nothing to read, before waiting. It reports
	// whether it has sent something.
	idle func() bool
}

func (in *input) init(early []byte) {
	in.read = in.readable
	if len(early) > 0 {
		in.buf = getBuffer(max(len(early), batchSize))
		in.w = copy(in.buf.b, early)
	}
}

// unread returns the bytes that are there. They are valid until the next call
// of fill, fillInto or skip.
func (in *input) unread() []byte {
	if in.buf == nil {
		return nil
	}
	return in.buf.b[in.r:in.w]
}

// skip drops n of the unread bytes.
func (in *input) skip(n int) { in.r += n }

// fill waits until there are more unread bytes.
func (in *input) fill() error {
	if in.buf != nil && in.r > 0 {
		in.w = copy(in.buf.b, in.buf.b[in.r:in.w])
		in.r = 0
	}
	if in.w == 0 {
		in.rest()
	}
	in.into = nil
	if err := in.receive(); err != nil {
		return err
	}
	in.w += in.n
	return nil
}

// fillInto waits for bytes and puts them into p, which must not be empty. There
// must be no unread bytes.
func (in *input) fillInto(p []byte) (int, error) {
	in.into = p
	err := in.receive()
	in.into = nil
	return in.n, err
}

func (in *input) receive() error {
	in.n, in.err = 0, nil
	if in.raw != nil {
		if err := in.raw.Read(in.read); err != nil {
			return err
		}
	} else {
		in.idle() // a stream does not tell whether it will wait
		in.n, in.err = in.conn.Read(in.target())
	}
	if in.n == 0 && in.err == nil {
		return io.EOF
	}
	if in.n > 0 {
		return nil
	}
	return in.err
}

// target returns where the next bytes go.
func (in *input) target() []byte {
	if in.into != nil {
		return in.into
	}
	if in.buf == nil {
		size := batchSize
		if in.raw == nil {
			size = mediumSize // one TLS record comes at a time, and the buffer is held while waiting
		}
		in.buf = getBuffer(size)
		in.r, in.w = 0, 0
	}
	return in.buf.b[in.w:]
}

// rest gives the buffer back, if it is empty.
func (in *input) rest() {
	if in.r == in.w {
		in.buf.put()
		in.buf, in.r, in.w = nil, 0, 0
	}
}
