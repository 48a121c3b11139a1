package file

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

type system struct {
	trims atomic.Bool // what a disk need not keep is told to it
}

// Requests to a disk, from sys/disk.h.
const (
	dkGetBlockSize     = 0x40046418 // DKIOCGETBLOCKSIZE, an uint32 in bytes
	dkGetBlockCount    = 0x40086419 // DKIOCGETBLOCKCOUNT, an uint64
	dkSynchronizeCache = 0x20006416 // DKIOCSYNCHRONIZECACHE
	dkGetFeatures      = 0x4004644c // DKIOCGETFEATURES, an uint32
	dkUnmap            = 0x8010641f // DKIOCUNMAP, a dk_unmap_t
)

// Locks that belong to an open file, not to a process, from sys/fcntl.h. QEMU
// takes them where it finds them in there.
const (
	ofdSetLock = 90 // F_OFD_SETLK
	ofdGetLock = 92 // F_OFD_GETLK
)

func (f *File) openFlags() int { return 0 }

// direct keeps data out of the page cache. That needs no alignment.
func (f *File) direct() error {
	_, err := unix.FcntlInt(f.fd, unix.F_NOCACHE, 1)
	return os.NewSyscallError("fcntl F_NOCACHE", err)
}

// Both numbers are read into a zeroed int of 64 bits, on machines that are all
// little-endian.

func (f *File) measureDisk() (int64, error) {
	count, err := unix.IoctlGetInt(int(f.fd), dkGetBlockCount)
	if err != nil {
		return 0, os.NewSyscallError("DKIOCGETBLOCKCOUNT", err)
	}
	return int64(count) * f.sectorSize(), nil
}

func (f *File) sectorSize() int64 {
	size, err := unix.IoctlGetInt(int(f.fd), dkGetBlockSize)
	if err != nil || size == 0 {
		return 512
	}
	return int64(size)
}

// diskName is empty: the serial numbers of disks are not to be had by a request.
func (f *File) diskName() string { return "" }

// datasync empties the cache of the disk, too: for a file package os uses
// F_FULLFSYNC, which raw disks do not know.
func (f *File) datasync() error {
	if !f.device {
		return f.f.Sync()
	}
	err := unix.IoctlSetInt(int(f.fd), dkSynchronizeCache, 0)
	if errors.Is(err, unix.ENOTTY) || errors.Is(err, unix.ENOTSUP) {
		return os.NewSyscallError("fsync", unix.Fsync(int(f.fd))) // there is no cache
	}
	return os.NewSyscallError("DKIOCSYNCHRONIZECACHE", err)
}

func (f *File) findsHoles() bool { return false }

func (f *File) makesHoles() bool { return !f.device }

// discardAlign is the block size of the file system: holes are made of whole
// blocks.
func (f *File) discardAlign() int64 {
	var fs unix.Statfs_t
	if f.device || unix.Fstatfs(int(f.fd), &fs) != nil {
		return f.align
	}
	return max(int64(fs.Bsize), f.align)
}

// punch makes a hole. Its argument, fpunchhole_t, begins like that of the call
// that allocates: 32 bits of flags, 32 bits that must be 0, offset, length.
func (f *File) punch(off, n int64) error {
	err := unix.FcntlFstore(f.fd, unix.F_PUNCHHOLE, &unix.Fstore_t{Offset: off, Length: n})
	switch {
	case errors.Is(err, unix.ENOTSUP), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOTTY), errors.Is(err, unix.EINVAL):
		return fmt.Errorf("fcntl F_PUNCHHOLE: %w", errors.ErrUnsupported)
	}
	return os.NewSyscallError("fcntl F_PUNCHHOLE", err)
}

// canTrim reports whether the disk does anything with what trim tells it.
func (f *File) canTrim() bool {
	features, err := unix.IoctlGetInt(int(f.fd), dkGetFeatures)
	return err == nil && features&featureUnmap != 0
}

// trim gives up a range of whole sectors.
func (f *File) trim(off, n int64) error {
	r := &unmapRequest{ranges: &unmapRange{uint64(off), uint64(n)}, count: 1}
	err := f.ioctl("DKIOCUNMAP", dkUnmap, unsafe.Pointer(r))
	switch {
	case errors.Is(err, unix.ENOTSUP), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.ENOTTY), errors.Is(err, unix.ENOSYS):
		return fmt.Errorf("DKIOCUNMAP: %w", errors.ErrUnsupported)
	}
	return err
}
