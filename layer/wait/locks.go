package wait

import "sync"

// stripes are locks of stretches of a device: a few, shared by many. The zero
// value is ready.
type stripes struct {
	locks [lockCount]sync.Mutex
}

// regions are like stripes, with readers, for whole pages of the bitmap.
type regions struct {
	locks [lockCount]sync.RWMutex
}

const (
	lockCount  = 64
	stripeSize = 16 << 10 // bytes that share a stripe
)

// each calls do for the numbers of the locks of a range, always in the same order,
// where a lock is for size bytes.
func each(off, end, size int64, do func(i int64)) {
	if off >= end {
		return
	}
	first, last := off/size, (end-1)/size
	if last-first >= lockCount {
		first, last = 0, lockCount-1
	}
	first, last = first%lockCount, last%lockCount
	for i := range int64(lockCount) {
		inside := first <= i && i <= last
		if first > last { // wraps around
			inside = i >= first || i <= last
		}
		if inside {
			do(i)
		}
	}
}

func (s *stripes) lock(off, end int64) {
	each(off, end, stripeSize, func(i int64) { s.locks[i].Lock() })
}

func (s *stripes) unlock(off, end int64) {
	each(off, end, stripeSize, func(i int64) { s.locks[i].Unlock() })
}

func (r *regions) rlock(off, end int64) {
	each(off, end, stretch, func(i int64) { r.locks[i].RLock() })
}

func (r *regions) runlock(off, end int64) {
	each(off, end, stretch, func(i int64) { r.locks[i].RUnlock() })
}

func (r *regions) lock(off, end int64) {
	each(off, end, stretch, func(i int64) { r.locks[i].Lock() })
}

func (r *regions) unlock(off, end int64) {
	each(off, end, stretch, func(i int64) { r.locks[i].Unlock() })
}
