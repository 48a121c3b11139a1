package socket

import (
	"math/bits"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

const (
	seats       = 16                   // how many may linger at a time: each holds a thread meanwhile
	lingerTime  = 5 * time.Millisecond // and up to twice that
	ticksAtRest = 20                   // before the lounge closes
)

// lounge is where Conns linger. They wait without a time limit of their own, since to set
// up a timer in the kernel for each wait costs as much as a quarter of a request. One
// ticker sends away those who stay for too long.
type lounge struct {
	open  func() error
	bells [seats]int    // an eventfd for each seat
	taken atomic.Uint32 // a bit for each seat
	since [seats]atomic.Uint32
	tick  atomic.Uint32
	// runs says that the ticker does; asked that somebody has come since its last tick.
	runs, asked atomic.Bool
	// deep counts the Conns with deep queues that have come since the last tick, and
	// crowd is how many those were in the tick before.
	deep, crowd atomic.Int32
}

var lobby = func() *lounge {
	l := new(lounge)
	l.open = sync.OnceValue(l.hang)
	return l
}()

// hang hangs up the bells.
func (l *lounge) hang() error {
	for i := range l.bells {
		fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
		if err != nil {
			for _, fd := range l.bells[:i] {
				unix.Close(fd)
			}
			return os.NewSyscallError("eventfd2", err)
		}
		l.bells[i] = fd
	}
	return nil
}

// sit takes a seat. It is below 0 if there is none.
func (l *lounge) sit() int {
	for {
		t := l.taken.Load()
		i := bits.TrailingZeros32(^t)
		if i >= seats {
			return -1
		}
		if l.taken.CompareAndSwap(t, t|1<<i) {
			l.since[i].Store(l.tick.Load())
			l.enter() // with the seat taken: the ticker looks at that when it has stopped
			return i
		}
	}
}

// rise gives a seat back.
func (l *lounge) rise(seat int) { l.taken.And(^uint32(1 << seat)) }

// late reports whether somebody sits there for too long.
func (l *lounge) late(seat int) bool {
	return l.taken.Load()&(1<<seat) != 0 && l.tick.Load()-l.since[seat].Load() > 1
}

// enter sees to it that the ticker runs.
func (l *lounge) enter() {
	if !l.asked.Load() {
		l.asked.Store(true)
	}
	if !l.runs.Load() && l.runs.CompareAndSwap(false, true) {
		go l.run()
	}
}

// run is the ticker.
func (l *lounge) run() {
	t := time.NewTicker(lingerTime)
	defer t.Stop()
	for idle := 0; idle < ticksAtRest; {
		<-t.C
		l.tick.Add(1)
		l.crowd.Store(l.deep.Swap(0))
		l.ring()
		if idle++; l.asked.Swap(false) || l.taken.Load() != 0 {
			idle = 0
		}
	}
	l.stop()
}

// ring sends away who is late.
func (l *lounge) ring() {
	for i, bell := range l.bells {
		if l.late(i) {
			unix.Write(bell, []byte{1, 0, 0, 0, 0, 0, 0, 0}) // a number that is not 0, in any byte order
		}
	}
}

// stop ends the ticker, unless somebody has come who believed that it ran.
func (l *lounge) stop() {
	l.runs.Store(false)
	if l.asked.Load() || l.taken.Load() != 0 {
		l.enter()
	}
}

// patience is how much a Conn lingers. It belongs to the reader.
type patience struct {
	habit          // of waiting as a thread
	spin    habit  // of looking
	counted uint32 // the tick in which it was last counted as deep
}

// Linger looks for a moment, and then waits as a thread, if that has lately been worth it,
// and reports whether there is something to read. deep says that several requests came at
// once the last time: then it does not look, and if there are more such connections than
// processors, it does not wait either: the poller gathers what comes for them, while threads
// would only take turns.
//
// Only the one who reads may call it, also in a function that is called by the RawConn's
// Read.
func (c *Conn) Linger(deep bool) bool {
	if c.use() != nil {
		return false
	}
	defer c.done()
	return c.linger(deep)
}

// linger is Linger for one who uses c.
func (c *Conn) linger(deep bool) bool {
	if !deep && spin(&c.spin, c.fd) {
		return true
	}
	if !c.due() {
		return false
	}
	l := lobby
	if l.open() != nil {
		return false
	}
	if deep && l.crowded(&c.patience) {
		return false
	}
	seat := l.sit()
	if seat < 0 {
		return false
	}
	ok := l.wait(seat, c.fd)
	l.rise(seat)
	return c.note(ok)
}

// crowded counts a Conn with a deep queue, and reports whether there are too many.
func (l *lounge) crowded(p *patience) bool {
	l.enter()
	if now := l.tick.Load(); p.counted != now {
		p.counted = now
		l.deep.Add(1)
	}
	return int(l.crowd.Load()) > runtime.GOMAXPROCS(0)
}

// wait waits until fd can be read (true), or for too long. The bell may still ring for whoever
// had the seat before.
func (l *lounge) wait(seat, fd int) bool {
	fds := [2]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}, {Fd: int32(l.bells[seat]), Events: unix.POLLIN}}
	for {
		_, err := unix.Ppoll(fds[:], nil, nil)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return false
		case fds[0].Revents != 0:
			return true
		}
		late := l.late(seat)
		var b [8]byte
		unix.Read(l.bells[seat], b[:]) // silences it
		if late {
			return false
		}
	}
}
