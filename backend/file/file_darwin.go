package file

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

var stat = os.Stat

type system struct{}

// Requests to a disk, from sys/disk.h.
const (
	dkGetBlockSize  = 0x40046418 // DKIOCGETBLOCKSIZE, an uint32 in bytes
	dkGetBlockCount = 0x40086419 // DKIOCGETBLOCKCOUNT, an uint64
)

// Both numbers are read into a zeroed int of 64 bits on machines that are
// little-endian, which all of these are.

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

func (f *File) fileName() string {
	info, err := f.f.Stat()
	if err != nil {
		return ""
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return ""
	}
	return fmt.Sprint("file ", st.Dev, st.Ino, st.Birthtimespec)
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
		return fmt.Errorf("fcntl: %w", errors.ErrUnsupported)
	}
	return os.NewSyscallError("fcntl", err)
}
