package file

import (
	"os"
	"strconv"
	"unsafe"

	"golang.org/x/sys/unix"
)

// probe asks the kernel which pages of a file are in memory and good. It is a
// mapping of the whole file that is never touched: it takes address space, and
// no memory. (A process that locks all its memory must do without.)
//
// cachestat would be cheaper, and is no use: it counts pages that could not be
// read, or are still being read, so that a bad sector would break a reply in the
// middle.
type probe struct {
	address uintptr // 0 if the kernel will not tell
	size    int64
}

// findProbe makes the probe, where the answers can be believed: of a file that a
// process neither owns nor may write, mincore says that all of it is in memory.
func (f *File) findProbe() {
	size := f.size.Load()
	if strconv.IntSize < 64 || size == 0 || !f.honest() {
		return
	}
	addr, err := unix.MmapPtr(int(f.fd), 0, nil, uintptr(size), unix.PROT_READ, unix.MAP_SHARED|unix.MAP_NORESERVE)
	if err == nil {
		f.sys.probe = probe{uintptr(addr), size}
	}
}

// honest reports whether mincore tells this process the truth about the file.
func (f *File) honest() bool {
	if !f.config.ReadOnly || os.Geteuid() == 0 {
		return true
	}
	var st unix.Stat_t
	if unix.Fstat(int(f.fd), &st) == nil && int(st.Uid) == os.Geteuid() {
		return true
	}
	return unix.Faccessat(unix.AT_FDCWD, "/proc/self/fd/"+strconv.Itoa(int(f.fd)), unix.W_OK, unix.AT_EACCESS) == nil
}

func (p *probe) close() {
	if p.address != 0 {
		unix.Syscall(unix.SYS_MUNMAP, p.address, uintptr(p.size), 0)
		p.address = 0
	}
}

// resident reports whether all pages of a range are in memory. That a page is
// being read, or could not be read, counts as no.
func (f *File) resident(off, n int64) bool {
	p := &f.sys.probe
	if p.address == 0 || off+n > p.size {
		return false
	}
	page := int64(unix.Getpagesize())
	off, end := roundDown(off, page), off+n
	var in [512]byte // for each page one
	for off < end {
		k := min(end-off, int64(len(in))*page)
		_, _, err := unix.RawSyscall(unix.SYS_MINCORE, p.address+uintptr(off), uintptr(k), uintptr(unsafe.Pointer(&in)))
		if err != 0 || !allSet(in[:(k+page-1)/page]) {
			return false
		}
		off += k
	}
	return true
}

// allSet reports whether the lowest bit of every byte is set.
func allSet(in []byte) bool {
	all := byte(1)
	for _, b := range in {
		all &= b
	}
	return all == 1
}
