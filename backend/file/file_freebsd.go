package file

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

type system struct {
	known knownData
	trims atomic.Bool // what a disk need not keep is told to it
}

// The call that makes holes, from sys/fcntl.h and sys/syscall.h. It came with
// FreeBSD 14; a kernel that does not know a call ends the process that makes it.
const (
	sysFspacectl   = 580
	deallocate     = 1       // SPACECTL_DEALLOC
	firstRelease   = 1400097 // kern.osreldate of 14.0
	deallocPresent = 65      // _PC_DEALLOC_PRESENT, for fpathconf
)

// spaceRange is struct spacectl_range.
type spaceRange struct{ offset, length int64 }

var hasFspacectl = sync.OnceValue(func() bool {
	release, err := unix.SysctlUint32("kern.osreldate")
	return err == nil && release >= firstRelease
})

// openFlags asks for direct I/O. What is not aligned, or lies on a file system
// without it, goes through the cache all the same.
func (f *File) openFlags() int {
	if f.config.Direct {
		return unix.O_DIRECT
	}
	return 0
}

func (f *File) direct() error { return nil }

func (f *File) measureDisk() (int64, error) {
	var size int64
	err := f.ioctl("DIOCGMEDIASIZE", unix.DIOCGMEDIASIZE, unsafe.Pointer(&size))
	return size, err
}

func (f *File) sectorSize() int64 {
	var size uint32
	if f.ioctl("DIOCGSECTORSIZE", unix.DIOCGSECTORSIZE, unsafe.Pointer(&size)) != nil || size == 0 {
		return 512
	}
	return int64(size)
}

// diskName is the number that the disk carries. The parts of a disk have the
// same, and are told apart by their names.
func (f *File) diskName() string {
	var ident [256]byte // DISK_IDENT_SIZE
	if f.ioctl("DIOCGIDENT", unix.DIOCGIDENT, unsafe.Pointer(&ident)) != nil {
		return ""
	}
	text, _, _ := bytes.Cut(ident[:], []byte{0})
	if len(text) == 0 {
		return ""
	}
	return fmt.Sprintf("disk %s as %s", text, f.config.Path)
}

// datasync empties the cache of a disk by a request: fsync does nothing for one.
func (f *File) datasync() error {
	if !f.device {
		return f.f.Sync()
	}
	err := f.ioctl("DIOCGFLUSH", unix.DIOCGFLUSH, nil)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return nil // it has no cache
	}
	return err
}

// makesHoles leaves out file systems for which the kernel would write zeroes.
func (f *File) makesHoles() bool {
	if f.device || !hasFspacectl() {
		return false
	}
	present, err := unix.Fpathconf(int(f.fd), deallocPresent)
	return err == nil && present == 1
}

func (f *File) discardAlign() int64 { return f.align }

// punch makes a hole. The call may do a part of its work, and tells what is left;
// edges of blocks are zeroed by writing.
func (f *File) punch(off, n int64) error {
	defer f.sys.known.forget()
	r := spaceRange{off, n}
	for r.length > 0 {
		_, _, err := unix.Syscall6(sysFspacectl, f.fd, deallocate, uintptr(unsafe.Pointer(&r)), 0, uintptr(unsafe.Pointer(&r)), 0)
		switch err {
		case 0, unix.EINTR:
		case unix.EOPNOTSUPP, unix.ENOSYS, unix.ENODEV:
			return fmt.Errorf("fspacectl: %w", errors.ErrUnsupported)
		default:
			return os.NewSyscallError("fspacectl", err)
		}
	}
	return nil
}

// canTrim reports whether the disk does anything with what trim tells it.
func (f *File) canTrim() bool {
	a := diskAttribute{length: 4}
	copy(a.name[:], "GEOM::candelete")
	return f.ioctl("DIOCGATTR", unix.DIOCGATTR, unsafe.Pointer(&a)) == nil && a.value.number != 0
}

// trim gives up a range of whole sectors.
func (f *File) trim(off, n int64) error {
	r := [2]int64{off, n}
	err := f.ioctl("DIOCGDELETE", unix.DIOCGDELETE, unsafe.Pointer(&r))
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOTTY) {
		return fmt.Errorf("DIOCGDELETE: %w", errors.ErrUnsupported)
	}
	return err
}
