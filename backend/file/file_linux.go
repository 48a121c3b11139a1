package file

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"

	"nbd.example/nbd/block"
)

// rawCharacterDevices says whether disks are character devices here.
const rawCharacterDevices = false

// system is what only Linux has.
type system struct {
	fast   fast
	sector int64 // logical block size of a block device
	known  knownData
}

func (f *File) openFlags() int {
	flag := unix.O_CLOEXEC
	if f.config.Direct {
		flag |= unix.O_DIRECT
	}
	if f.config.Sync {
		flag |= unix.O_DSYNC
	}
	if f.device && !f.config.ReadOnly && !f.config.Force {
		flag |= unix.O_EXCL
	}
	return flag
}

func (f *File) explainOpen(err error) error {
	err = plain(err)
	switch {
	case f.device && errors.Is(err, unix.EBUSY):
		return fmt.Errorf("%w: the device is mounted or used by something else; serve it read-only or unmount it", err)
	case f.config.Direct && errors.Is(err, unix.EINVAL):
		return fmt.Errorf("%w: the file system has no direct I/O", err)
	case errors.Is(err, unix.EROFS), errors.Is(err, unix.EACCES) && !f.config.ReadOnly:
		return fmt.Errorf("%w: it cannot be opened for writing; serve it read-only, or change its permissions", err)
	}
	return err
}

func (f *File) deviceSize() (int64, error) {
	if !f.device {
		info, err := f.f.Stat()
		if err != nil {
			return 0, err
		}
		return info.Size(), nil
	}
	var size uint64
	if err := f.ioctl(unix.BLKGETSIZE64, unsafe.Pointer(&size)); err != nil {
		return 0, err
	}
	sector, err := unix.IoctlGetInt(int(f.fd), unix.BLKSSZGET)
	f.sys.sector = int64(sector)
	return int64(size), err
}

func (f *File) ioctl(request uintptr, arg unsafe.Pointer) error {
	if _, _, err := unix.Syscall(unix.SYS_IOCTL, f.fd, request, uintptr(arg)); err != 0 {
		return err
	}
	return nil
}

// findAlignment asks what direct I/O needs.
func (f *File) findAlignment() error {
	if !f.config.Direct {
		return nil
	}
	f.align = max(f.sys.sector, 512)
	var st unix.Statx_t
	if unix.Statx(int(f.fd), "", unix.AT_EMPTY_PATH, unix.STATX_DIOALIGN, &st) == nil && st.Mask&unix.STATX_DIOALIGN != 0 {
		if st.Dio_offset_align == 0 {
			return errors.New("the file system has no direct I/O for this file")
		}
		f.align = int64(max(st.Dio_offset_align, st.Dio_mem_align))
	} else if !f.device {
		f.align = 4096 // an old kernel does not tell
	}
	if f.align > 1<<16 {
		return fmt.Errorf("direct I/O needs an alignment of %d bytes, over the limit of 65536", f.align)
	}
	return nil
}

func (f *File) sysAbilities(c *block.Caps) {
	c.FUA = block.Native
	if f.device {
		c.Extents = block.Emulated // a device does not tell its holes
		c.Rotational = f.rotational()
	}
	if f.config.ReadOnly {
		c.FUA = block.Auto
	}
	f.findFast()
}

// rotational asks sysfs about the disk that a device is, or is a part of.
func (f *File) rotational() bool {
	var st unix.Stat_t
	if unix.Fstat(int(f.fd), &st) != nil {
		return false
	}
	dir := fmt.Sprintf("/sys/dev/block/%d:%d/", unix.Major(st.Rdev), unix.Minor(st.Rdev))
	for _, name := range []string{"queue/rotational", "../queue/rotational"} {
		if b, err := os.ReadFile(dir + name); err == nil {
			return strings.TrimSpace(string(b)) == "1"
		}
	}
	return false
}

// instance names the file, not its path: a file that was replaced is another.
func (f *File) instance() string {
	var st unix.Statx_t
	if unix.Statx(int(f.fd), "", unix.AT_EMPTY_PATH, unix.STATX_BASIC_STATS|unix.STATX_BTIME, &st) != nil {
		return ""
	}
	h := sha256.New()
	fmt.Fprintln(h, st.Dev_major, st.Dev_minor, st.Rdev_major, st.Rdev_minor)
	if !f.device { // a device node may be made anew at every start
		fmt.Fprintln(h, st.Ino, st.Btime.Sec, st.Btime.Nsec)
	}
	return fmt.Sprintf("%x", h.Sum(nil)[:16])
}

func (f *File) datasync() error {
	for {
		if err := unix.Fdatasync(int(f.fd)); err != unix.EINTR {
			return os.NewSyscallError("fdatasync", err)
		}
	}
}

// writeStable writes p and makes it stable, and no more than it.
func (f *File) writeStable(p []byte, off int64) error {
	for done := 0; done < len(p); {
		iov := unix.Iovec{Base: &p[done]}
		iov.SetLen(len(p) - done)
		at := off + int64(done)
		n, _, err := unix.Syscall6(unix.SYS_PWRITEV2, f.fd, uintptr(unsafe.Pointer(&iov)), 1, uintptr(at), uintptr(uint64(at)>>32), unix.RWF_DSYNC)
		switch err {
		case 0:
			done += int(n)
		case unix.EINTR:
		case unix.EOPNOTSUPP, unix.ENOSYS:
			return f.finish(f.writeAt(p[done:], at), block.FUA)
		default:
			return f.explainStable(p[done:], at, err)
		}
	}
	return nil
}

// explainStable tells a failed write from a failed write-back. The call does
// one after the other and has one error for both; after a failed write-back,
// which the system reports only once, data of others may be lost too.
func (f *File) explainStable(p []byte, off int64, err error) error {
	if again := f.writeAt(p, off); again != nil {
		return again // it was the write, and nothing was made stable
	}
	return &block.OffsetError{Off: off, Err: fmt.Errorf("%w: %w", block.ErrNotStable, os.NewSyscallError("pwritev2", err))}
}

func (f *File) discardAlign() int64 {
	if f.device {
		return max(f.sys.sector, 1)
	}
	return f.align
}

func (f *File) discard(off, n int64) error {
	if f.device {
		r := [2]uint64{uint64(off), uint64(n)}
		return unsupported("BLKDISCARD", f.ioctl(unix.BLKDISCARD, unsafe.Pointer(&r)))
	}
	return f.fallocate(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
}

// zero makes a range read as zeroes without writing it.
func (f *File) zero(off, n int64, noHole, fast bool) error {
	mode := uint32(unix.FALLOC_FL_PUNCH_HOLE)
	if noHole {
		mode = unix.FALLOC_FL_ZERO_RANGE
	}
	err := f.fallocate(mode|unix.FALLOC_FL_KEEP_SIZE, off, n)
	if f.device && !fast && errors.Is(err, errors.ErrUnsupported) {
		r := [2]uint64{uint64(off), uint64(n)}
		return unsupported("BLKZEROOUT", f.ioctl(unix.BLKZEROOUT, unsafe.Pointer(&r)))
	}
	return err
}

func (f *File) fallocate(mode uint32, off, n int64) error {
	for {
		if err := unix.Fallocate(int(f.fd), mode, off, n); err != unix.EINTR {
			return unsupported("fallocate", err)
		}
	}
}

// unsupported gives one name to the many ways of saying "not here".
func unsupported(call string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOTTY), errors.Is(err, unix.ENOSYS), errors.Is(err, unix.ENODEV):
		return fmt.Errorf("%s: %w", call, errors.ErrUnsupported)
	}
	return os.NewSyscallError(call, err)
}

// knownData remembers one stretch that holds data all through. Reading asks for
// extents often, and looking for the end of a long stretch is slow. That the
// stretch has been trimmed meanwhile does no harm: a hole may be called data.
type knownData struct {
	mu       sync.Mutex
	off, end int64
}

func (k *knownData) covers(off, n int64) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.off <= off && off+n <= k.end
}

func (k *knownData) set(off, end int64) {
	k.mu.Lock()
	k.off, k.end = off, end
	k.mu.Unlock()
}

// Extents asks the file system.
func (f *File) Extents(_ context.Context, off, n int64, flags block.Flags, add func(block.Extent) bool) error {
	if f.sys.known.covers(off, n) {
		add(block.Extent{Length: n, Depth: 1})
		return nil
	}
	for at := off; at < off+n; {
		x, err := f.extentAt(at)
		if err != nil {
			return err
		}
		if !add(x) {
			return nil
		}
		at += x.Length
	}
	return nil
}

func (f *File) extentAt(off int64) (block.Extent, error) {
	data, err := unix.Seek(int(f.fd), off, unix.SEEK_DATA)
	switch {
	case err == unix.ENXIO: // nothing but a hole
		data = f.size
	case err != nil:
		return block.Extent{}, os.NewSyscallError("lseek", err)
	}
	if data = min(data, f.size); data > off {
		return block.Extent{Length: data - off, State: block.Hole | block.Zero}, nil
	}
	hole, err := unix.Seek(int(f.fd), off, unix.SEEK_HOLE)
	switch {
	case err == unix.ENXIO: // punched in between
		return block.Extent{Length: f.size - off, State: block.Hole | block.Zero}, nil
	case err != nil:
		return block.Extent{}, os.NewSyscallError("lseek", err)
	}
	if hole = min(hole, f.size); hole <= off { // punched in between: to say "data" is always right
		return block.Extent{Length: min(4096, f.size-off), Depth: 1}, nil
	}
	f.sys.known.set(off, hole)
	return block.Extent{Length: hole - off, Depth: 1}, nil
}

// Cache has the system read ahead.
func (f *File) Cache(_ context.Context, off, n int64) error {
	if f.config.Direct {
		return nil
	}
	return os.NewSyscallError("fadvise", unix.Fadvise(int(f.fd), off, n, unix.FADV_WILLNEED))
}
