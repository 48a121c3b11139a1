package file

import (
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// aheadWindow is how far long reads that follow one another are read ahead of, in bytes.
const aheadWindow = 4 << 20

// stream follows long reads that come one after the other, of a file that is not in
// memory. Workers carry them out side by side, in any order, and the system's own
// read-ahead does not see one stream in that.
type stream struct {
	next  atomic.Int64 // where the last one ended
	ahead atomic.Int64 // up to where the system was told to read; 0 if nothing was missing
}

// follow is told of a long read, in the order in which they come, and whether all of it
// is in memory. It does not wait for the disk.
func (s *stream) follow(fd uintptr, off, n int64, resident bool) {
	ahead := s.ahead.Load()
	if resident && ahead == 0 {
		return
	}
	end := off + n
	if s.next.Swap(end) != off {
		s.ahead.Store(0)
		return
	}
	if ahead > end+aheadWindow/2 {
		return
	}
	from := max(end, ahead)
	s.ahead.Store(end + aheadWindow)
	unix.Fadvise(int(fd), from, end+aheadWindow-from, unix.FADV_WILLNEED)
}
