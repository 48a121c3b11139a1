package file

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/windows"
)

type system struct{}

// Requests to a disk, from winioctl.h.
const (
	ioctlDiskGetLengthInfo    = 0x7405c
	ioctlDiskGetDriveGeometry = 0x70000
)

// stat is os.Stat, which knows nothing of disks: those have names like
// \\.\PhysicalDrive0 and \\.\D:, without a further backslash.
func stat(name string) (fs.FileInfo, error) {
	if disk, found := strings.CutPrefix(name, `\\.\`); found && !strings.ContainsAny(disk, `\/`) {
		return diskInfo(disk), nil
	}
	return os.Stat(name)
}

// diskInfo is the name of a disk.
type diskInfo string

func (d diskInfo) Name() string     { return string(d) }
func (diskInfo) Size() int64        { return 0 }
func (diskInfo) Mode() fs.FileMode  { return fs.ModeDevice }
func (diskInfo) ModTime() time.Time { return time.Time{} }
func (diskInfo) IsDir() bool        { return false }
func (diskInfo) Sys() any           { return nil }

// control makes a request of a file or disk; in and out may be nil.
func (f *File) control(request uint32, in unsafe.Pointer, inSize uintptr, out unsafe.Pointer, outSize uintptr) error {
	var n uint32
	return windows.DeviceIoControl(windows.Handle(f.fd), request, (*byte)(in), uint32(inSize), (*byte)(out), uint32(outSize), &n, nil)
}

func (f *File) measureDisk() (int64, error) {
	var size int64
	if err := f.control(ioctlDiskGetLengthInfo, nil, 0, unsafe.Pointer(&size), unsafe.Sizeof(size)); err != nil {
		return 0, os.NewSyscallError("IOCTL_DISK_GET_LENGTH_INFO", err)
	}
	return size, nil
}

func (f *File) sectorSize() int64 {
	var g struct {
		cylinders                                                int64
		mediaType, tracksPerCylinder, sectorsPerTrack, byteCount uint32
	}
	if err := f.control(ioctlDiskGetDriveGeometry, nil, 0, unsafe.Pointer(&g), unsafe.Sizeof(g)); err != nil || g.byteCount == 0 {
		return 512
	}
	return int64(g.byteCount)
}

func (f *File) fileName() string {
	var info syscall.ByHandleFileInformation
	if syscall.GetFileInformationByHandle(syscall.Handle(f.fd), &info) != nil {
		return ""
	}
	return fmt.Sprint("file ", info.VolumeSerialNumber, info.FileIndexHigh, info.FileIndexLow, info.CreationTime)
}

func (f *File) findsHoles() bool { return false }

func (f *File) makesHoles() bool { return !f.device }

func (f *File) discardAlign() int64 { return f.align }

// punch makes a hole, as far as the file system can, and zeroes the rest. Only
// in a sparse file can it be fast, so the file becomes one.
func (f *File) punch(off, n int64) error {
	if err := f.control(windows.FSCTL_SET_SPARSE, nil, 0, nil, 0); err != nil {
		if errors.Is(err, windows.ERROR_INVALID_FUNCTION) || errors.Is(err, windows.ERROR_NOT_SUPPORTED) {
			return fmt.Errorf("FSCTL_SET_SPARSE: %w", errors.ErrUnsupported)
		}
		return os.NewSyscallError("FSCTL_SET_SPARSE", err)
	}
	r := [2]int64{off, off + n}
	return os.NewSyscallError("FSCTL_SET_ZERO_DATA", f.control(windows.FSCTL_SET_ZERO_DATA, unsafe.Pointer(&r), unsafe.Sizeof(r), nil, 0))
}
