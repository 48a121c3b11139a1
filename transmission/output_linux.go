package transmission

import (
	"sync"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"nbd.example/nbd/block"
)

// maxVector bounds the buffers that go out with one system call.
const maxVector = 64

// vector is scratch space for one system call. It is too large for every
// connection at rest to have its own.
type vector struct {
	iov [maxVector]unix.Iovec
	msg unix.Msghdr
}

var vectors = sync.Pool{New: func() any { return new(vector) }}

// plainSocket returns conn's descriptor, if it is a socket of the kernel's own.
func plainSocket(conn any) syscall.RawConn {
	s, ok := conn.(syscall.Conn)
	if !ok {
		return nil
	}
	raw, err := s.SyscallConn()
	if err != nil {
		return nil
	}
	return raw
}

// sendBuffer is the room for answers in a unix socket, in bytes. With the
// system's default of 208 KiB, not even one answer of 256 KiB fits, and long reads
// take twice as long. TCP grows its buffers by itself.
const sendBuffer = 1 << 20

// enlarge gives a unix socket a larger buffer: what we want if we may, and else
// as much of it as the system allows.
func enlarge(fd int) {
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, sendBuffer) != nil {
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, sendBuffer)
	}
}

// step makes one system call for the segments at hand. o.progress tells how it
// went: nil, EAGAIN, or why the connection is over.
func (o *output) step(fd uintptr) {
	switch {
	case !o.sending[o.next].inFile():
		o.progress = o.stepBytes(fd)
	case o.copies:
		o.progress = o.stepCopy(fd)
	default:
		o.progress = o.stepSpan(fd)
	}
}

// stepBytes sends what lies in memory: buffers, and spans of mappings.
func (o *output) stepBytes(fd uintptr) error {
	v := vectors.Get().(*vector)
	defer vectors.Put(v)
	count, flags, mapped := 0, uintptr(unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT), false
	for i := o.next; i < len(o.sending) && count < maxVector; i++ {
		s := &o.sending[i]
		if s.inFile() {
			flags |= unix.MSG_MORE // the header and its data belong together
			break
		}
		v.iov[count].SetLen(s.left())
		if a := s.span.Address(); a != 0 {
			// The collector knows nothing of it, and nothing here looks at it.
			*(*uintptr)(unsafe.Pointer(&v.iov[count].Base)) = a
			mapped = true
		} else {
			v.iov[count].Base = unsafe.SliceData(s.buf.b[s.lo:s.hi]) // hi may be beyond b's length
		}
		count++
	}
	v.msg.Iov = &v.iov[0]
	v.msg.SetIovlen(count)
	for {
		n, err := v.send(fd, flags, mapped)
		switch {
		case err == 0:
			o.advance(n)
			return nil
		case err == unix.EAGAIN:
			return syscall.EAGAIN
		case err == unix.EFAULT && mapped:
			// A page is not there any more, or cannot be read. Whether the
			// fault is in the first one or a later one, nobody says.
			o.avoid(o.firstMapped())
			return errSpan
		case err != unix.EINTR:
			return err
		}
	}
}

// send makes the call. The socket does not block, so the scheduler need not
// know of it; but to touch a mapping may.
func (v *vector) send(fd, flags uintptr, mapped bool) (int, unix.Errno) {
	if mapped {
		n, _, err := unix.Syscall(unix.SYS_SENDMSG, fd, uintptr(unsafe.Pointer(&v.msg)), flags)
		return int(n), err
	}
	n, _, err := unix.RawSyscall(unix.SYS_SENDMSG, fd, uintptr(unsafe.Pointer(&v.msg)), flags)
	return int(n), err
}

func (o *output) firstMapped() block.Span {
	for i := o.next; i < len(o.sending); i++ {
		if s := o.sending[i].span; s.Address() != 0 {
			return s
		}
	}
	return block.Span{}
}

// stepSpan sends from the page cache. The count that comes back alone says
// where the stream stands.
func (o *output) stepSpan(fd uintptr) error {
	s := &o.sending[o.next]
	for {
		off := s.span.Off
		n, err := unix.Sendfile(int(fd), int(s.span.FD), &off, int(min(s.span.Len, 1<<30)))
		switch {
		case n > 0:
			o.bytes.Add(uint64(n))
			if s.skip(n); s.left() == 0 {
				o.finish()
			}
			return nil
		case err == unix.EINTR:
		case err == unix.EAGAIN:
			return syscall.EAGAIN
		case err != nil && ofSocket(err):
			return err // not the file's doing
		default:
			o.avoid(s.span)
			return errSpan
		}
	}
}

// stepCopy sends from the page cache through a buffer.
func (o *output) stepCopy(fd uintptr) error {
	s := &o.sending[o.next]
	if len(o.piece) == 0 && !o.readPiece(s.span) {
		o.avoid(s.span)
		return errSpan
	}
	flags := uintptr(unix.MSG_NOSIGNAL | unix.MSG_DONTWAIT)
	if int64(len(o.piece)) < s.span.Len {
		flags |= unix.MSG_MORE
	}
	for {
		n, _, err := unix.RawSyscall6(unix.SYS_SENDTO, fd, uintptr(unsafe.Pointer(&o.piece[0])), uintptr(len(o.piece)), flags, 0, 0)
		switch err {
		case 0:
			o.bytes.Add(uint64(n))
			o.piece = o.piece[n:]
			if s.skip(int(n)); s.left() == 0 {
				o.dropPiece()
				o.finish()
			}
			return nil
		case unix.EINTR:
		case unix.EAGAIN:
			return syscall.EAGAIN
		default:
			return err
		}
	}
}

// readPiece reads the beginning of s, and reports whether it is there.
func (o *output) readPiece(s block.Span) bool {
	n := copySize(s.Len)
	if o.pieceIn == nil {
		o.pieceIn = getBuffer(n)
	}
	o.piece = o.pieceIn.b[:n]
	for done := 0; done < n; {
		k, err := unix.Pread(int(s.FD), o.piece[done:], s.Off+int64(done))
		if err != nil && err != unix.EINTR || err == nil && k == 0 {
			o.dropPiece()
			return false
		}
		done += max(k, 0)
	}
	return true
}

// ofSocket tells the errors that a call which moves bytes from a file to a
// socket has because of the socket.
func ofSocket(err error) bool {
	switch err {
	case unix.EPIPE, unix.ECONNRESET, unix.ECONNABORTED, unix.ENOTCONN, unix.ETIMEDOUT, unix.ENOBUFS,
		unix.EHOSTUNREACH, unix.EHOSTDOWN, unix.ENETUNREACH, unix.ENETDOWN, unix.ENETRESET:
		return true
	}
	return false
}
