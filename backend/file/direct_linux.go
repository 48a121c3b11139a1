package file

import (
	"math/bits"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"nbd.example/nbd/block"
	"nbd.example/nbd/internal/fileid"
)

// How TryRead may read a file.
const (
	readNever  = iota // every read may wait
	readNowait        // RWF_NOWAIT answers from the page cache or not at all
	readAlways        // the file lives in memory (tmpfs), which refuses RWF_NOWAIT and waits for nothing but swap
)

// slowWrite is how long a buffered write may take before those that follow are
// left to others for slowPause: a journal that is full, or throttling.
const (
	slowWrite = 2 * time.Millisecond
	slowPause = 100 * time.Millisecond
)

// quietRead is how many bytes are read at most without telling the scheduler.
const quietRead = 64 << 10

// fast is the state of the fast path.
type fast struct {
	read      int
	write     bool                 // writes go to the page cache of a regular file on a local disk
	spans     bool                 // the page cache can be asked what is in memory
	inMemory  bool                 // there is no disk below
	missed    atomic.Bool          // the last read was not in memory
	clock     func() time.Duration // the time since some moment
	slowUntil atomic.Int64         // writes may wait until then, in nanoseconds on clock
}

var start = time.Now()

func sinceStart() time.Duration { return time.Since(start) }

var (
	_ block.Cacher = (*File)(nil)
	_ block.Direct = (*File)(nil)
)

// findFast finds out once what the file allows.
func (f *File) findFast() {
	s := &f.sys.fast
	s.clock = sinceStart
	if f.config.Direct {
		return
	}
	var fs unix.Statfs_t
	if unix.Fstatfs(int(f.fd), &fs) != nil {
		return
	}
	f.findProbe()
	s.inMemory = !f.device && fileid.InMemory(&fs)
	if s.inMemory {
		s.read, s.spans = readAlways, true
	} else {
		switch f.nowait(make([]byte, 1), 0) {
		case 0, unix.EAGAIN, unix.EIO:
			s.read = readNowait
			s.spans = f.sys.probe.address != 0
		}
	}
	// What cannot read without waiting is behind a network or another program,
	// and might keep a writer waiting for good. An overlay is not.
	local := s.read != readNever || fs.Type == unix.OVERLAYFS_SUPER_MAGIC
	s.write = local && !f.device && !f.config.Sync && !f.config.ReadOnly
}

// nowait reads from the page cache. EIO stands for a short read, which says
// that the rest is not in memory or not there.
func (f *File) nowait(p []byte, off int64) (err unix.Errno) {
	// A read that misses starts the disk, which takes time.
	n, err := f.vectored(unix.SYS_PREADV2, p, off, unix.RWF_NOWAIT, !f.sys.fast.missed.Load())
	if err == 0 && int(n) != len(p) {
		return unix.EIO
	}
	return err
}

// vectored makes one call that reads or writes p. What is short, and not known
// to wait, is made without telling the scheduler.
func (f *File) vectored(call uintptr, p []byte, off int64, flags uintptr, quiet bool) (int, unix.Errno) {
	iov := unix.Iovec{Base: unsafe.SliceData(p)}
	iov.SetLen(len(p))
	lo, hi := offsetHalves(off)
	if quiet && len(p) <= quietRead {
		n, _, err := unix.RawSyscall6(call, f.fd, uintptr(unsafe.Pointer(&iov)), 1, lo, hi, flags)
		return int(n), err
	}
	n, _, err := unix.Syscall6(call, f.fd, uintptr(unsafe.Pointer(&iov)), 1, lo, hi, flags)
	return int(n), err
}

// inMemory reads or writes where nothing waits but for swap, as every access to
// memory may. The old calls are the faster ones, but take an offset in one piece only
// where a register holds it.
func (f *File) inMemory(write bool, p []byte, off int64) bool {
	if bits.UintSize < 64 || len(p) > quietRead {
		call := uintptr(unix.SYS_PREADV2)
		if write {
			call = unix.SYS_PWRITEV2
		}
		n, err := f.vectored(call, p, off, 0, true)
		return err == 0 && n == len(p)
	}
	call := uintptr(unix.SYS_PREAD64)
	if write {
		call = unix.SYS_PWRITE64
	}
	n, _, err := unix.RawSyscall6(call, f.fd, uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)), uintptr(off), 0, 0)
	return err == 0 && int(n) == len(p)
}

// TryRead answers from memory, or not at all.
func (f *File) TryRead(p []byte, off int64) bool {
	s := &f.sys.fast
	switch s.read {
	case readNowait:
		ok := f.nowait(p, off) == 0
		if s.missed.Load() == ok {
			s.missed.Store(!ok)
		}
		return ok
	case readAlways:
		return f.inMemory(false, p, off)
	}
	return false
}

// TryWrite writes to the page cache, unless writes have lately been slow.
func (f *File) TryWrite(p []byte, off int64) bool {
	s := &f.sys.fast
	if !s.write {
		return false
	}
	if s.inMemory {
		return f.inMemory(true, p, off)
	}
	begin := s.clock()
	if int64(begin) < s.slowUntil.Load() {
		return false
	}
	n, err := unix.Pwrite(int(f.fd), p, off)
	if end := s.clock(); end-begin > slowWrite {
		s.slowUntil.Store(int64(end + slowPause))
	}
	return err == nil && n == len(p)
}

// Range returns a span of the file, if all of it is in memory.
func (f *File) Range(off, n int64, onlyData bool) (block.Span, bool) {
	s := &f.sys.fast
	if !s.spans || f.sys.avoided.overlaps(off, n) || onlyData && !f.sys.known.covers(off, n) {
		return block.Span{}, false
	}
	if !s.inMemory {
		in := f.resident(off, n)
		f.sys.stream.follow(f.fd, off, n, in)
		if !in {
			return block.Span{}, false
		}
	}
	return block.Span{FD: f.fd, Off: off, Len: n}, true
}
