package file

import (
	"errors"
	"fmt"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

var stat = os.Stat

type system struct{ known knownData }

func (f *File) measureDisk() (int64, error) {
	var size int64
	if _, _, err := unix.Syscall(unix.SYS_IOCTL, f.fd, unix.DIOCGMEDIASIZE, uintptr(unsafe.Pointer(&size))); err != 0 {
		return 0, os.NewSyscallError("DIOCGMEDIASIZE", err)
	}
	return size, nil
}

func (f *File) sectorSize() int64 {
	var size uint32
	if _, _, err := unix.Syscall(unix.SYS_IOCTL, f.fd, unix.DIOCGSECTORSIZE, uintptr(unsafe.Pointer(&size))); err != 0 {
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

func (f *File) makesHoles() bool { return false }

func (f *File) discardAlign() int64 { return f.align }

func (f *File) punch(int64, int64) error { return errors.ErrUnsupported }
