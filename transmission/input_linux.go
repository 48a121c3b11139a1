package transmission

import (
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Over TCP the next request often comes a moment after an answer. To wait for it
// in the kernel, as a thread, takes less than to park the goroutine and to have
// the scheduler wake a thread, or two, for it: measured, a fifth to a half. (Over
// unix sockets it brings nothing: there the client runs on our processor.)
const (
	lingerTime  = 300 * time.Microsecond
	lingerLimit = 8  // connections at a time: each holds a thread meanwhile
	lingerPause = 64 // waits that pass, at most, after it was in vain
)

var lingering atomic.Int32

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
	if in.patient && in.linger(fd) {
		return true
	}
	in.rest()
	return false
}

// linger waits for a moment, where that has lately been worth it.
func (in *input) linger(fd uintptr) bool {
	if in.pause > 0 {
		in.pause--
		return false
	}
	ok := false
	if lingering.Add(1) <= lingerLimit {
		fds := [1]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		limit := unix.NsecToTimespec(int64(lingerTime))
		n, err := unix.Ppoll(fds[:], &limit, nil)
		ok = err == nil && n > 0 && in.receiveNow(fd)
	}
	lingering.Add(-1)
	if ok {
		in.backoff = 0
		return true
	}
	in.backoff = min(2*in.backoff+1, lingerPause)
	in.pause = in.backoff
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
