package transmission

import (
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// readable receives once, or gives the buffer back and asks to be called again
// when there is something.
func (in *input) readable(fd uintptr) bool {
	if in.receiveNow(fd) {
		return true
	}
	if in.idle() && in.receiveNow(fd) { // to send takes long enough for more to come in
		return true
	}
	if in.into != nil {
		return false
	}
	if in.linger != nil && in.linger(in.deep) && in.receiveNow(fd) {
		return true
	}
	in.rest()
	return false
}

// receiveNow receives what is there, and reports false if nothing is.
func (in *input) receiveNow(fd uintptr) bool {
	p := in.target()
	for {
		n, _, err := unix.RawSyscall6(unix.SYS_RECVFROM, fd, uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)), unix.MSG_DONTWAIT, 0, 0)
		switch err {
		case 0:
			in.n = int(n)
			return true
		case unix.EINTR:
		case unix.EAGAIN:
			return false
		default:
			in.err = syscall.Errno(err)
			return true
		}
	}
}
