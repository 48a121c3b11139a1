package file

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/windows"
)

// rawCharacterDevices says whether disks are character devices here.
const rawCharacterDevices = false

// system is what only Windows has.
type system struct {
	fresh   span             // what was written and not flushed
	volumes []windows.Handle // of the disk, locked
	trims   atomic.Bool      // what a disk need not keep is told to it
}

// isDiskName tells the names of disks and volumes: \\.\PhysicalDrive0, \\.\D:,
// \\?\Volume{…}, without a further backslash. Package os does not know them.
func isDiskName(name string) bool {
	name = strings.ReplaceAll(name, "/", `\`)
	rest, found := strings.CutPrefix(name, `\\.\`)
	if !found {
		rest, found = strings.CutPrefix(name, `\\?\`)
		found = found && !isDrive(rest) // that is a folder, but for the backslash
	}
	return found && rest != "" && !strings.Contains(rest, `\`)
}

// isDrive tells a letter with a colon.
func isDrive(s string) bool { return len(s) == 2 && s[1] == ':' }

// openFlags: package os opens files so that others may open them for reading and
// writing, too. Those who do not share writing, as QEMU, refuse, and are refused.
func (f *File) openFlags() int {
	if f.config.Direct {
		return windows.O_FILE_FLAG_NO_BUFFERING
	}
	return 0
}

func (f *File) explainOpen(err error) error {
	switch {
	case errors.Is(err, windows.ERROR_SHARING_VIOLATION):
		return fmt.Errorf("%w: a virtual machine or another program uses it for itself; stop it", err)
	case f.device && errors.Is(err, windows.ERROR_ACCESS_DENIED):
		return fmt.Errorf("%w: disks and volumes are for administrators", err)
	case f.config.ReadOnly:
		return err
	case errors.Is(err, windows.ERROR_ACCESS_DENIED), errors.Is(err, windows.ERROR_WRITE_PROTECT):
		return fmt.Errorf("%w: it cannot be opened for writing; serve it read-only, or change its permissions", err)
	}
	return err
}

// sysError adds the number that the rest of the program knows an error by.
func sysError(err error) error {
	for _, x := range []struct{ windows, errno syscall.Errno }{
		{windows.ERROR_DISK_FULL, syscall.ENOSPC},
		{windows.ERROR_HANDLE_DISK_FULL, syscall.ENOSPC},
		{windows.ERROR_DISK_QUOTA_EXCEEDED, syscall.EDQUOT},
		{windows.ERROR_WRITE_PROTECT, syscall.EROFS},
		{windows.ERROR_ACCESS_DENIED, syscall.EACCES},
		{windows.ERROR_NOT_ENOUGH_MEMORY, syscall.ENOMEM},
		{windows.ERROR_NO_SYSTEM_RESOURCES, syscall.ENOMEM},
	} {
		if errors.Is(err, x.windows) {
			return fmt.Errorf("%w (%w)", err, x.errno)
		}
	}
	return err
}

// control makes a request of a file or disk, and returns how many bytes of out it
// has filled. In and out may be nil.
func control(h windows.Handle, request uint32, in unsafe.Pointer, inSize uintptr, out unsafe.Pointer, outSize uintptr) (int, error) {
	var n uint32
	err := windows.DeviceIoControl(h, request, (*byte)(in), uint32(inSize), (*byte)(out), uint32(outSize), &n, nil)
	return int(n), err
}

func (f *File) handle() windows.Handle { return windows.Handle(f.fd) }

// request asks for something, and passes nothing.
func (f *File) request(name string, request uint32, out unsafe.Pointer, size uintptr) error {
	_, err := control(f.handle(), request, nil, 0, out, size)
	return os.NewSyscallError(name, err)
}

// storageInfo is FILE_STORAGE_INFO.
type storageInfo struct {
	logicalSector                 uint32
	_, _                          uint32
	_, _                          uint32
	sectorOffset, partitionOffset uint32
}

// direct finds the sectors that direct I/O to a file must be aligned to.
func (f *File) direct() error {
	if f.device {
		return nil
	}
	var info storageInfo
	err := windows.GetFileInformationByHandleEx(f.handle(), windows.FileStorageInfo, (*byte)(unsafe.Pointer(&info)), uint32(unsafe.Sizeof(info)))
	f.align = int64(info.logicalSector)
	if err != nil || f.align == 0 {
		f.align = 4096 // a file system that does not tell
	}
	return nil
}

// datasync empties the caches of Windows and of the disk.
func (f *File) datasync() error {
	flushed := f.sys.fresh.flushing()
	if err := f.f.Sync(); err != nil {
		return sysError(err)
	}
	flushed()
	return nil
}

func (f *File) sysClose() {
	for _, v := range f.sys.volumes {
		windows.CloseHandle(v)
	}
	f.sys.volumes = nil
}
