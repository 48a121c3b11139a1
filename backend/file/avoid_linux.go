package file

import (
	"math"
	"slices"
	"sync"
	"sync/atomic"

	"nbd.example/nbd/block"
)

// maxAvoided is how many stretches are kept apart.
const maxAvoided = 64

// avoided has the stretches that could not be sent. Most files have none.
type avoided struct {
	list     atomic.Pointer[[]stretch] // never changed, but replaced
	mu       sync.Mutex                // for those who replace it
	mappings atomic.Bool               // mappings are avoided, too
}

// stretch is a part of a file, in bytes.
type stretch struct{ off, end int64 }

// Avoid is called when a span could not be sent whole: the file has become
// smaller, or a sector under it has gone bad. From then on these bytes are read, so
// that the next to ask gets the error. A mapping sends many stretches with one call,
// which does not tell where it failed; so it is not used any more at all.
func (f *File) Avoid(s block.Span) {
	a := &f.sys.avoided
	switch {
	case s.Address() != 0:
		a.mappings.Store(true)
	case s.FD == f.fd:
		a.add(stretch{s.Off, s.Off + s.Len})
	}
}

func (a *avoided) add(s stretch) {
	a.mu.Lock()
	defer a.mu.Unlock()
	list := []stretch{s}
	if old := a.list.Load(); old != nil {
		list = append(slices.Clone(*old), s)
	}
	if len(list) > maxAvoided {
		list = []stretch{{0, math.MaxInt64}}
	}
	a.list.Store(&list)
}

// overlaps reports whether any of n bytes at off is to be avoided.
func (a *avoided) overlaps(off, n int64) bool {
	list := a.list.Load()
	return list != nil && slices.ContainsFunc(*list, func(s stretch) bool { return off < s.end && s.off < off+n })
}
