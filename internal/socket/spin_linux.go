package socket

import (
	"runtime"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// spinTime is for how long a reader looks for more before it waits. A client on the same
// machine that asks one thing at a time is mostly back by then; to put a thread to rest
// and to wake it again takes longer, and as much of the processor.
const spinTime = 20 * time.Microsecond

// spinners is how many look at a time: half of the processors are left to those for whom
// they look.
var spinners = int32(runtime.GOMAXPROCS(0) / 2)

// spinning is how many do.
var spinning atomic.Int32

// spin looks again and again whether there is something to read from fd, or its end, if
// that has lately been worth it.
func spin(h *habit, fd int) bool {
	if !h.due() {
		return false
	}
	defer spinning.Add(-1)
	if spinning.Add(1) > spinners {
		return false
	}
	for begin := time.Now(); ; {
		if readable(fd) {
			return h.note(true)
		}
		if time.Since(begin) > spinTime {
			return h.note(false)
		}
	}
}

// readable reports whether a read of fd would not wait.
func readable(fd int) bool {
	var b [1]byte
	_, _, err := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(&b)), 1, unix.MSG_PEEK|unix.MSG_DONTWAIT, 0, 0)
	return err != unix.EAGAIN && err != unix.EINTR
}

// longestPause is how many occasions pass at most.
const longestPause = 64

// habit says whether something is worth a try: each time that it was in vain, more
// occasions pass before the next one.
type habit struct{ pause, backoff int }

// due reports whether it should be tried now.
func (h *habit) due() bool {
	if h.pause > 0 {
		h.pause--
		return false
	}
	return true
}

// note takes down whether a try was worth it, and returns that.
func (h *habit) note(ok bool) bool {
	if ok {
		h.backoff = 0
		return true
	}
	h.backoff = min(2*h.backoff+1, longestPause)
	h.pause = h.backoff
	return false
}
