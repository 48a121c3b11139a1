package transmission

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"syscall"

	"nbd.example/nbd/block"
	"nbd.example/nbd/proto"
)

// RequestError is the server's answer to a request that it could not carry out.
// The connection lives on.
//
// errors.Is finds in it its proto.Errno, the system's error number of the same
// name (so os.ErrPermission and errors.ErrUnsupported too), and block.ErrReadOnly
// in an NBD_EPERM.
type RequestError struct {
	Command proto.Command
	// Errno is one of the specification's eight. A number that it does not know
	// is NBD_EINVAL. proto.md, "Error values".
	Errno proto.Errno
	// Sent is the number as the server sent it.
	Sent proto.Errno
	// Message is the server's text, untrusted; empty if there was none.
	Message string
	// Offset says where it failed, in bytes from the start of the export, if
	// HasOffset is set.
	Offset    uint64
	HasOffset bool
}

// Error says what failed, where, and with which words of the server.
func (e *RequestError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%v: server answered %v", e.Command, e.Errno)
	if e.Sent != e.Errno {
		fmt.Fprintf(&b, " (for its unknown error number %d)", uint32(e.Sent))
	}
	if e.HasOffset {
		fmt.Fprintf(&b, " at offset %d", e.Offset)
	}
	if e.Message != "" {
		fmt.Fprintf(&b, ": %.256q", e.Message)
	}
	return b.String()
}

// Unwrap returns Errno.
func (e *RequestError) Unwrap() error { return e.Errno }

// Is makes errors.Is find the system's errors in e.
func (e *RequestError) Is(target error) bool {
	switch target {
	case block.ErrReadOnly, fs.ErrPermission:
		return e.Errno == proto.EPERM
	case errors.ErrUnsupported:
		return e.Errno == proto.ENOTSUP
	}
	sys, ok := systemErrno[e.Errno]
	return ok && errors.Is(sys, target)
}

var systemErrno = map[proto.Errno]syscall.Errno{
	proto.EPERM:     syscall.EPERM,
	proto.EIO:       syscall.EIO,
	proto.ENOMEM:    syscall.ENOMEM,
	proto.EINVAL:    syscall.EINVAL,
	proto.ENOSPC:    syscall.ENOSPC,
	proto.EOVERFLOW: syscall.EOVERFLOW,
	proto.ENOTSUP:   syscall.ENOTSUP,
	proto.ESHUTDOWN: syscall.ESHUTDOWN,
}

// newRequestError makes sent one of the numbers that the specification knows.
func newRequestError(c proto.Command, sent proto.Errno) *RequestError {
	e := &RequestError{Command: c, Errno: sent, Sent: sent}
	if _, known := systemErrno[sent]; !known {
		e.Errno = proto.EINVAL
	}
	return e
}
