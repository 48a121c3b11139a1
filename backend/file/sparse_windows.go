package file

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"unsafe"

	"golang.org/x/sys/windows"

	"nbd.example/nbd/block"
	"nbd.example/nbd/internal/sparse"
)

var _ block.Extenter = (*File)(nil)

// span covers all that was written since the last flush, and what lies between.
// What has not reached the file system's own records need not be in its list of
// what is allocated, so a hole is believed only outside of the span.
type span struct {
	mu       sync.Mutex
	off, end int64 // nothing if equal
	writes   uint64
}

// add is called before the range is written.
func (s *span) add(off, end int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.off == s.end {
		s.off, s.end = off, end
	}
	s.off, s.end = min(s.off, off), max(s.end, end)
	s.writes++
}

// flushing is called before a flush, and what it returns after one that has
// succeeded.
func (s *span) flushing() (flushed func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	writes := s.writes
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.writes == writes {
			s.off, s.end = 0, 0
		}
	}
}

// now returns the span as it is.
func (s *span) now() (off, end int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.off, s.end
}

func (s *system) wrote(off int64, n int) { s.fresh.add(off, off+int64(n)) }

// supportsSparse is FILE_SUPPORTS_SPARSE_FILES.
const supportsSparse = 0x40

// makesHoles reports whether the file system has sparse files.
func (f *File) makesHoles() bool {
	var flags uint32
	err := windows.GetVolumeInformationByHandle(f.handle(), nil, 0, nil, nil, &flags, nil, 0)
	return err == nil && !f.device && flags&supportsSparse != 0
}

// findsHoles reports whether Extents has an answer.
func (f *File) findsHoles() bool {
	if !f.makesHoles() {
		return false
	}
	_, err := f.allocated(0, max(f.size.Load(), 1), make([]allocatedRange, 1))
	return err == nil
}

// discardAlign is 1: what does not fill whole units of the file system is zeroed.
func (f *File) discardAlign() int64 { return f.align }

// lockGrowth makes a file sparse that is about to grow, or all of the new bytes
// would be allocated. Where that cannot be they are.
func (f *File) lockGrowth() error {
	if f.makesHoles() {
		sparse.Prepare(f.f)
	}
	return nil
}

// punch makes a hole, as far as whole units of the file system go, and zeroes the
// rest. Only in a sparse file can it be fast, so the file becomes one.
func (f *File) punch(off, n int64) error {
	if err := sparse.Prepare(f.f); err != nil {
		return unsupported(err)
	}
	r := [2]int64{off, off + n} // FILE_ZERO_DATA_INFORMATION
	_, err := control(f.handle(), windows.FSCTL_SET_ZERO_DATA, unsafe.Pointer(&r), unsafe.Sizeof(r), nil, 0)
	return unsupported(os.NewSyscallError("FSCTL_SET_ZERO_DATA", err))
}

// unsupported gives one name to the ways of saying "not here".
func unsupported(err error) error {
	if errors.Is(err, windows.ERROR_INVALID_FUNCTION) || errors.Is(err, windows.ERROR_NOT_SUPPORTED) {
		return fmt.Errorf("%w (%w)", err, errors.ErrUnsupported)
	}
	return sysError(err)
}

// allocatedRange is FILE_ALLOCATED_RANGE_BUFFER, of which the system counts an
// array's size in bytes.
type allocatedRange struct{ offset, length int64 }

// allocated fills list with what is allocated in a range, in order, and returns
// how much of it. If the list is full there may be more.
func (f *File) allocated(off, n int64, list []allocatedRange) ([]allocatedRange, error) {
	r := allocatedRange{off, n}
	size, err := control(f.handle(), windows.FSCTL_QUERY_ALLOCATED_RANGES, unsafe.Pointer(&r), unsafe.Sizeof(r),
		unsafe.Pointer(unsafe.SliceData(list)), uintptr(len(list))*unsafe.Sizeof(r))
	if err != nil && !errors.Is(err, windows.ERROR_MORE_DATA) {
		return nil, os.NewSyscallError("FSCTL_QUERY_ALLOCATED_RANGES", err)
	}
	return list[:uintptr(size)/unsafe.Sizeof(r)], nil
}

// Extents asks the file system.
func (f *File) Extents(ctx context.Context, off, n int64, flags block.Flags, add func(block.Extent) bool) error {
	var list [64]allocatedRange
	for at, end := off, off+n; at < end; {
		freshOff, freshEnd := f.sys.fresh.now()
		found, err := f.allocated(at, end-at, list[:])
		if err != nil {
			return err
		}
		until := end
		if len(found) == len(list) { // behind the last there may be more
			last := found[len(found)-1]
			if until = min(end, last.offset+last.length); until <= at {
				return fmt.Errorf("FSCTL_QUERY_ALLOCATED_RANGES: the file system lists what was not asked for: %d bytes at %d", last.length, last.offset)
			}
		}
		found = withRange(found, freshOff, freshEnd)
		if !addExtents(found, at, until, f.align, flags&block.One != 0, add) {
			return nil
		}
		at = until
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	return nil
}

// withRange adds a range to a list in order, if it is not empty. They may overlap
// then; addExtents does not mind.
func withRange(list []allocatedRange, off, end int64) []allocatedRange {
	if off == end {
		return list
	}
	for i, r := range list {
		if r.offset > off {
			list = append(list[:i:i], append([]allocatedRange{{off, end - off}}, list[i:]...)...)
			return list
		}
	}
	return append(list[:len(list):len(list)], allocatedRange{off, end - off})
}

// addExtents describes the bytes from off to end: data where they are in the list,
// whose ranges begin in order, to whole blocks of unit bytes; holes in between. It
// reports false when no more are wanted.
func addExtents(list []allocatedRange, off, end, unit int64, one bool, add func(block.Extent) bool) bool {
	tell := func(until int64, x block.Extent) bool {
		if until = min(until, end); until <= off {
			return true
		}
		x.Length = until - off
		off = until
		return add(x) && !one
	}
	for i := 0; i < len(list) && off < end; i++ {
		lo, hi := roundDown(list[i].offset, unit), roundUp(list[i].offset+list[i].length, unit)
		for ; i+1 < len(list) && roundDown(list[i+1].offset, unit) <= hi; i++ { // they touch
			hi = max(hi, roundUp(list[i+1].offset+list[i+1].length, unit))
		}
		if !tell(lo, block.Extent{State: block.Hole | block.Zero}) || !tell(hi, block.Extent{Depth: 1}) {
			return false
		}
	}
	return tell(end, block.Extent{State: block.Hole | block.Zero})
}
