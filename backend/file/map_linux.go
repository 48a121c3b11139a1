package file

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"nbd.example/nbd/block"
)

// Stretches of the file that are read again and again are sent from a mapping,
// without a copy through this process. They are judged window by window.
const (
	windowBits = 21
	windowSize = 1 << windowBits
	// warmReads is how often a window is read before it is looked at: the first
	// touch of each of its pages costs more than a read.
	warmReads = 256
	// retryReads is how many further reads it takes after it was found wanting.
	retryReads = 8192
	// judgement is how long a window counts as being in memory.
	judgement = 100 * time.Millisecond
	// checkEvery is how many reads of a window share one look at the clock.
	checkEvery = 16
	// maxWindows bounds what is mapped, and so counts as this process's memory.
	maxWindows = 4 << 30 / windowSize
)

// window is what is known of one stretch of windowSize bytes.
type window struct {
	reads  atomic.Int32 // below 0: so many to go until it is looked at
	hot    atomic.Bool
	judged atomic.Int64 // when, in nanoseconds since start
}

// mapping is a shared mapping of a whole file, of which only hot windows are
// ever touched.
type mapping struct {
	address uintptr
	size    int64
	windows []window

	mu   sync.Mutex
	hot  []int // windows, longest first
	next int   // the one to give up when there are too many
}

var _ block.Mapper = (*File)(nil)

// fileSystems whose pages can be taken from a mapping: on the network, or in
// another process, a page that is not there could take for ever.
var mappable = map[int64]string{
	unix.TMPFS_MAGIC: "tmpfs", unix.EXT4_SUPER_MAGIC: "ext4", unix.XFS_SUPER_MAGIC: "xfs", unix.BTRFS_SUPER_MAGIC: "btrfs",
}

// mapFile makes the mapping, if the configuration wants it.
func (f *File) mapFile() error {
	size := f.size.Load()
	if !f.config.Map || size == 0 {
		return nil
	}
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(f.fd), &fs); err != nil {
		return os.NewSyscallError("fstatfs", err)
	}
	switch {
	case strconv.IntSize < 64:
		return errors.New("the parameter map needs a 64-bit machine")
	case f.config.Direct:
		return errors.New("the parameters map and direct exclude each other")
	case f.device || mappable[int64(fs.Type)] == "":
		return errors.New("the parameter map needs a regular file on tmpfs, ext4, xfs or btrfs")
	case f.sys.probe.address == 0:
		return errors.New("the parameter map cannot be used without knowing what is in memory, which the kernel does not tell about this file: it must be ours, or open for writing")
	case lockedMemory():
		return errors.New("the parameter map cannot be used while the process locks its memory")
	}
	addr, err := unix.MmapPtr(int(f.fd), 0, nil, uintptr(size), unix.PROT_READ, unix.MAP_SHARED|unix.MAP_NORESERVE)
	if err != nil {
		return fmt.Errorf("mapping it: %w", err)
	}
	m := &mapping{address: uintptr(addr), size: size, windows: make([]window, roundUp(size, windowSize)>>windowBits)}
	for i := range m.windows {
		m.windows[i].reads.Store(-warmReads)
	}
	m.advise(0, size, unix.MADV_RANDOM) // or one cold page pulls in a megabyte
	f.sys.mapping = m
	return nil
}

// lockedMemory reports whether any memory of this process is locked.
func lockedMemory() bool {
	b, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return true
	}
	_, rest, found := strings.Cut(string(b), "VmLck:")
	return !found || strings.Fields(rest)[0] != "0"
}

func (m *mapping) advise(off, n int64, advice int) {
	unix.Syscall(unix.SYS_MADVISE, m.address+uintptr(off), uintptr(n), uintptr(advice))
}

// sysClose gives the mappings back.
func (f *File) sysClose() {
	f.sys.probe.close()

	if m := f.sys.mapping; m != nil {
		unix.Syscall(unix.SYS_MUNMAP, m.address, uintptr(m.size), 0)
		f.sys.mapping = nil
	}
}

// Mapped returns a span of the mapping, if all of it is in hot windows.
func (f *File) Mapped(off, n int64) (block.Span, bool) {
	m := f.sys.mapping
	if m == nil || f.sys.avoided.mappings.Load() || f.sys.avoided.overlaps(off, n) || off+n > m.size {
		return block.Span{}, false
	}
	for i := off >> windowBits; i <= (off+n-1)>>windowBits; i++ {
		if !f.warm(m, int(i)) {
			return block.Span{}, false
		}
	}
	return block.MappedSpan(m.address+uintptr(off), n), true
}

// warm counts a read of window i, and reports whether the window is hot.
func (f *File) warm(m *mapping, i int) bool {
	w := &m.windows[i]
	reads := w.reads.Add(1)
	if !w.hot.Load() {
		return reads >= 0 && f.judge(m, i)
	}
	if reads%checkEvery == 0 && int64(time.Since(start))-w.judged.Load() > int64(judgement) {
		return f.judge(m, i)
	}
	return true
}

// judge asks the kernel whether all of window i is in memory.
func (f *File) judge(m *mapping, i int) bool {
	off := int64(i) << windowBits
	n := min(windowSize, m.size-off)
	if !f.resident(off, n) {
		m.cool(i)
		return false
	}
	w := &m.windows[i]
	w.judged.Store(int64(time.Since(start)))
	w.reads.Store(1)
	if w.hot.CompareAndSwap(false, true) {
		m.keep(i)
	}
	return true
}

// keep notes a new hot window, and gives one up if there are too many.
func (m *mapping) keep(i int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.hot) < maxWindows {
		m.hot = append(m.hot, i)
		return
	}
	m.next = (m.next + 1) % maxWindows
	old := m.hot[m.next]
	m.hot[m.next] = i
	if old != i {
		m.cool(old)
		m.advise(int64(old)<<windowBits, min(windowSize, m.size-int64(old)<<windowBits), unix.MADV_DONTNEED)
	}
}

// cool takes a window out of use until it has been read often again.
func (m *mapping) cool(i int) {
	w := &m.windows[i]
	w.hot.Store(false)
	w.reads.Store(-retryReads)
}

// coolRange is for what is about to become a hole: on tmpfs, to read a hole
// through a mapping would allocate it.
func (f *File) coolRange(off, n int64) {
	if m := f.sys.mapping; m != nil && n > 0 && off < m.size {
		n = min(n, m.size-off)
		for i := off >> windowBits; i <= (off+n-1)>>windowBits; i++ {
			if m.windows[i].hot.Load() {
				m.cool(int(i))
			}
		}
	}
}
