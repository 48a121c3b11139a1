package file

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"
	"unsafe"

	"golang.org/x/sys/windows"
)

// Requests to disks and volumes, from winioctl.h.
const (
	ioctlDiskGetLengthInfo    = 0x7405c
	ioctlDiskGetDriveGeometry = 0x70000
	ioctlGetDeviceNumber      = 0x2d1080
	ioctlQueryProperty        = 0x2d1400
	ioctlManageDataSet        = 0x2d9404
	ioctlVolumeGetDiskExtents = 0x560000
	fsctlLockVolume           = 0x90018
	fsctlDismountVolume       = 0x90020
	fsctlAllowExtendedDASD    = 0x90083
)

func (f *File) measureDisk() (int64, error) {
	// A volume is a little longer than its file system.
	f.request("", fsctlAllowExtendedDASD, nil, 0)
	var size int64
	err := f.request("IOCTL_DISK_GET_LENGTH_INFO", ioctlDiskGetLengthInfo, unsafe.Pointer(&size), unsafe.Sizeof(size))
	if err != nil && f.config.Size > 0 {
		return unknownSize, nil
	}
	return size, err
}

func (f *File) sectorSize() int64 {
	var g struct {
		cylinders                                                int64
		mediaType, tracksPerCylinder, sectorsPerTrack, byteCount uint32
	}
	if f.request("", ioctlDiskGetDriveGeometry, unsafe.Pointer(&g), unsafe.Sizeof(g)) != nil || g.byteCount == 0 {
		return 512
	}
	return int64(g.byteCount)
}

// diskName is made of the number that the disk carries, and where on it a volume
// lies.
func (f *File) diskName() string {
	serial := f.serial()
	if serial == "" {
		return ""
	}
	place := ""
	for _, x := range diskExtents(f.handle()) {
		place += fmt.Sprintf(" from %d, %d bytes", x.offset, x.length)
	}
	return "disk " + serial + place
}

// serial returns the serial number of a disk, or "".
func (f *File) serial() string {
	var query [12]byte // STORAGE_PROPERTY_QUERY: StorageDeviceProperty, PropertyStandardQuery
	var answer [1024]byte
	n, err := control(f.handle(), ioctlQueryProperty, unsafe.Pointer(&query), unsafe.Sizeof(query), unsafe.Pointer(&answer), unsafe.Sizeof(answer))
	if err != nil {
		return ""
	}
	return serialOf(answer[:n])
}

// serialOf finds the serial number in a STORAGE_DEVICE_DESCRIPTOR.
func serialOf(descriptor []byte) string {
	const serialNumberOffset = 24
	if len(descriptor) < serialNumberOffset+4 {
		return ""
	}
	at := binary.LittleEndian.Uint32(descriptor[serialNumberOffset:])
	if at == 0 || at >= uint32(len(descriptor)) {
		return ""
	}
	text, _, _ := bytes.Cut(descriptor[at:], []byte{0})
	return strings.TrimSpace(string(text))
}

// diskExtent is DISK_EXTENT: a part of a disk that a volume lies on.
type diskExtent struct {
	disk           uint32
	_              uint32
	offset, length int64
}

// diskExtents returns where a volume lies, and nothing for what is none.
func diskExtents(h windows.Handle) []diskExtent {
	var answer struct { // VOLUME_DISK_EXTENTS
		count uint32
		_     uint32
		list  [32]diskExtent
	}
	_, err := control(h, ioctlVolumeGetDiskExtents, nil, 0, unsafe.Pointer(&answer), unsafe.Sizeof(answer))
	if err != nil && !errors.Is(err, windows.ERROR_MORE_DATA) {
		return nil
	}
	return answer.list[:min(int(answer.count), len(answer.list))]
}

// lock leaves files to their modes of sharing. A disk that is to be written is
// taken from its file systems: Windows would refuse writes to them, and they would
// not see any.
func (f *File) lock() error {
	if !f.device || f.config.ReadOnly {
		return nil
	}
	if len(diskExtents(f.handle())) > 0 || !isPhysical(f.config.Path) {
		return lockVolume(f.handle())
	}
	return f.lockVolumes()
}

// isPhysical tells the names of whole disks.
func isPhysical(name string) bool {
	const prefix = `\\.\PhysicalDrive`
	return len(name) > len(prefix) && strings.EqualFold(strings.ReplaceAll(name[:len(prefix)], "/", `\`), prefix)
}

// lockVolume locks a volume until its handle is closed, and dismounts its file
// system. Others who look at the volume for a moment are waited for.
func lockVolume(h windows.Handle) (err error) {
	for range 10 {
		if _, err = control(h, fsctlLockVolume, nil, 0, nil, 0); err == nil {
			_, err = control(h, fsctlDismountVolume, nil, 0, nil, 0)
			return ignoreMissing("FSCTL_DISMOUNT_VOLUME", err)
		}
		if !errors.Is(err, windows.ERROR_ACCESS_DENIED) {
			return ignoreMissing("FSCTL_LOCK_VOLUME", err)
		}
		time.Sleep(100 * time.Millisecond)
	}
	return fmt.Errorf("%w: files on the volume are in use; close them, serve it read-only, or override with the parameter force", windows.ERROR_SHARING_VIOLATION)
}

// ignoreMissing forgives what knows nothing of file systems.
func ignoreMissing(name string, err error) error {
	for _, missing := range []error{windows.ERROR_INVALID_FUNCTION, windows.ERROR_NOT_SUPPORTED, windows.ERROR_INVALID_PARAMETER} {
		if errors.Is(err, missing) {
			return nil
		}
	}
	return os.NewSyscallError(name, err)
}

// lockVolumes locks all volumes that have a part of this disk.
func (f *File) lockVolumes() error {
	var number struct{ kind, disk, partition uint32 } // STORAGE_DEVICE_NUMBER
	if err := f.request("IOCTL_STORAGE_GET_DEVICE_NUMBER", ioctlGetDeviceNumber, unsafe.Pointer(&number), unsafe.Sizeof(number)); err != nil {
		return ignoreMissing("", err)
	}
	names, err := volumeNames()
	if err != nil {
		return err
	}
	for _, name := range names {
		h, err := openVolume(name)
		if err != nil {
			continue // no medium, or not for us; if it is of this disk, writing will fail
		}
		if !liesOn(diskExtents(h), number.disk) {
			windows.CloseHandle(h)
			continue
		}
		f.sys.volumes = append(f.sys.volumes, h)
		if err := lockVolume(h); err != nil {
			f.sysClose()
			return fmt.Errorf("volume %s: %w", name, err)
		}
	}
	return nil
}

func liesOn(extents []diskExtent, disk uint32) bool {
	for _, x := range extents {
		if x.disk == disk {
			return true
		}
	}
	return false
}

// openVolume opens a volume by a name such as volumeNames returns.
func openVolume(name string) (windows.Handle, error) {
	p, err := windows.UTF16PtrFromString(name)
	if err != nil {
		return 0, err
	}
	return windows.CreateFile(p, windows.GENERIC_READ|windows.GENERIC_WRITE, windows.FILE_SHARE_READ|windows.FILE_SHARE_WRITE,
		nil, windows.OPEN_EXISTING, 0, 0)
}

// volumeNames returns the names of all volumes, \\?\Volume{…}, without the
// backslash at the end that would make them folders.
func volumeNames() (names []string, err error) {
	var buf [windows.MAX_PATH + 1]uint16
	find, err := windows.FindFirstVolume(&buf[0], uint32(len(buf)))
	if err != nil {
		return nil, os.NewSyscallError("FindFirstVolume", err)
	}
	defer windows.FindVolumeClose(find)
	for {
		names = append(names, strings.TrimSuffix(windows.UTF16ToString(buf[:]), `\`))
		if err := windows.FindNextVolume(find, &buf[0], uint32(len(buf))); err != nil {
			if errors.Is(err, windows.ERROR_NO_MORE_FILES) {
				return names, nil
			}
			return nil, os.NewSyscallError("FindNextVolume", err)
		}
	}
}

// canTrim reports whether the disk does anything with what trim tells it.
// Under force the disk may be in use by a file system, which trim says it is not.
func (f *File) canTrim() bool {
	if f.config.Force {
		return false
	}
	query := [3]uint32{8} // STORAGE_PROPERTY_QUERY: StorageDeviceTrimProperty, PropertyStandardQuery
	var answer [12]byte
	n, err := control(f.handle(), ioctlQueryProperty, unsafe.Pointer(&query), unsafe.Sizeof(query), unsafe.Pointer(&answer), unsafe.Sizeof(answer))
	return err == nil && trimEnabled(answer[:n])
}

// trim gives up a range of whole sectors. The disk is locked, and its file systems are dismounted: none
// of them keeps anything there.
func (f *File) trim(off, n int64) error {
	b := dataSetRequest(off, n)
	_, err := control(f.handle(), ioctlManageDataSet, unsafe.Pointer(&b), unsafe.Sizeof(b), nil, 0)
	if errors.Is(err, windows.ERROR_INVALID_PARAMETER) {
		err = windows.ERROR_NOT_SUPPORTED // so say drivers that do not know the action
	}
	return unsupported(os.NewSyscallError("IOCTL_STORAGE_MANAGE_DATA_SET_ATTRIBUTES", err))
}
