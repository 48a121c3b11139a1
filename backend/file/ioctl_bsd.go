//go:build darwin || freebsd || openbsd

package file

import (
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ioctl makes a request of a disk. The system reads or writes what arg points to.
func (f *File) ioctl(name string, request uintptr, arg unsafe.Pointer) error {
	for {
		_, _, err := unix.Syscall(unix.SYS_IOCTL, f.fd, request, uintptr(arg))
		switch err {
		case 0:
			return nil
		case unix.EINTR:
			continue
		}
		return os.NewSyscallError(name, err)
	}
}
