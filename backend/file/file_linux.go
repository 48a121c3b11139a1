package file

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"

	"nbd.example/nbd/block"
)

// rawCharacterDevices says whether disks are character devices here.
const rawCharacterDevices = false

// stableFlag says that writing to a file that was opened with O_DSYNC reaches the
// medium.
const stableFlag = true

// isDiskName is for systems whose disks are known by their names.
func isDiskName(string) bool { return false }

// sysError leaves errors as they are: the numbers are those that everybody knows.
func sysError(err error) error { return err }

// wrote is for systems that must remember what was written.
func (*system) wrote(int64, int) {}

// system is what only Linux has.
type system struct {
	fast   fast
	sector int64 // logical block size of a block device, in bytes
	known  knownData

	avoided avoided

	probe   probe
	stream  stream
	mapping *mapping // nil without Config.Map
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
	switch {
	case f.device && errors.Is(err, unix.EBUSY) && f.writtenHere():
		return fmt.Errorf("%w: another export of this server writes to the disk; serve one of them read-only, or override with the parameter force", err)
	case f.device && errors.Is(err, unix.EBUSY):
		return fmt.Errorf("%w: the disk is mounted or used by something else; unmount it, serve it read-only, or override with the parameter force", err)
	case f.config.Direct && errors.Is(err, unix.EINVAL):
		return fmt.Errorf("%w: the file system has no direct I/O", err)
	case f.config.ReadOnly:
		return err
	case errors.Is(err, unix.EROFS), errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM), errors.Is(err, unix.ETXTBSY):
		return fmt.Errorf("%w: it cannot be opened for writing; serve it read-only, or change its permissions", err)
	}
	return err
}

// measure returns the size in bytes.
func (f *File) measure() (int64, error) {
	size, err := f.currentSize()
	if err != nil || !f.device {
		return size, err
	}
	if size == 0 {
		return 0, errors.New("the disk has 0 bytes: it has no medium, or nothing is attached to it")
	}
	// A disk that is switched to read-only can be opened for writing all the same.
	if ro, err := unix.IoctlGetInt(int(f.fd), unix.BLKROGET); err == nil && ro != 0 && !f.config.ReadOnly {
		return 0, f.explainOpen(unix.EROFS)
	}
	sector, err := unix.IoctlGetInt(int(f.fd), unix.BLKSSZGET)
	f.sys.sector = int64(sector)
	return size, os.NewSyscallError("BLKSSZGET", err)
}

func (f *File) diskSize() (int64, error) {
	var size uint64
	err := f.ioctl(unix.BLKGETSIZE64, unsafe.Pointer(&size))
	return int64(size), os.NewSyscallError("BLKGETSIZE64", err)
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
	if f.align > maxAlignment || f.align&(f.align-1) != 0 {
		return fmt.Errorf("direct I/O needs an alignment of %d bytes, which is no power of two up to %d", f.align, maxAlignment)
	}
	return nil
}

// sysAbilities says what is known about this file, and leaves the rest to the
// methods.
func (f *File) sysAbilities(c *block.Caps) {
	c.FUA = block.Native
	if f.config.ReadOnly {
		c.FUA = block.Auto
	}
	if f.config.Direct {
		c.Cache = block.None // there is no cache to bring it to
	}
	if f.device {
		f.diskAbilities(c)
	} else {
		f.fileAbilities(c)
	}
	f.findFast()
	c.FreeFlush = f.sys.fast.inMemory
}

func (f *File) diskAbilities(c *block.Caps) {
	s := f.sysfs()
	c.Extents = block.Emulated // a disk does not tell its holes
	c.Rotational = s.attribute("queue/rotational") == "1"
	if s.attribute("queue/discard_max_bytes") == "0" {
		c.Trim = block.None
	}
	if s.attribute("queue/write_zeroes_max_bytes") == "0" && !c.ReadOnly {
		c.FastZero = block.Emulated // the kernel writes the zeroes
	}
}

func (f *File) fileAbilities(c *block.Caps) {
	if !f.findsHoles() {
		c.Extents = block.Emulated
	}
	if c.ReadOnly {
		return
	}
	var fs unix.Statfs_t
	if unix.Fstatfs(int(f.fd), &fs) != nil {
		return
	}
	switch uint32(fs.Type) {
	case unix.EXT4_SUPER_MAGIC, unix.XFS_SUPER_MAGIC, unix.BTRFS_SUPER_MAGIC, unix.TMPFS_MAGIC:
		return // there are holes here
	}
	// A hole far behind the end changes no more than the time of the last change,
	// and tells whether there are any.
	const far = 1 << 30
	if err := f.punch(roundUp(f.size.Load(), far)+far, 4096); errors.Is(err, errors.ErrUnsupported) {
		c.Trim, c.Zero = block.None, block.Emulated
	}
}
