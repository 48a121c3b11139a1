// Package file keeps an export's bytes in a regular file or a block device.
//
// Where the system offers it, trimming makes holes, zeroing keeps or makes them
// as asked, holes are found by asking the file system, and a write with FUA is
// made stable by itself, without the rest of the file. What a system, a file
// system or a disk does not offer is left out of the Caps, and block.Device
// emulates it or refuses.
//
// # Systems
//
// Linux has all of it: holes by fallocate and lseek, FUA by pwritev2, direct I/O,
// block devices with discard and zeroing, the fast path of [block.Direct], and
// exclusive use.
//
// Windows makes holes in sparse files (FSCTL_SET_ZERO_DATA) and finds them
// (FSCTL_QUERY_ALLOCATED_RANGES), on file systems that have sparse files. Disks
// and volumes have the names \\.\PhysicalDrive0 and \\.\D:, and are used in whole
// sectors. Direct I/O is there. Requests to one open file wait for each other
// inside Windows.
//
// macOS makes holes (F_PUNCHHOLE), but none are looked for: APFS is known to call
// fresh data a hole. A flush takes F_FULLFSYNC, or DKIOCSYNCHRONIZECACHE for a
// disk, since fsync leaves data in the cache of the disk. Direct I/O keeps data
// out of the page cache (F_NOCACHE).
//
// FreeBSD finds holes by lseek, and makes them from version 14 on (fspacectl),
// where the file system can. A flush of a disk takes DIOCGFLUSH. Direct I/O is a
// wish there that the file system may pass over.
//
// OpenBSD has no holes to ask for. It has no call that empties the cache of a
// disk either, so a flush of a raw disk is worth what that cache is.
//
// On macOS and the BSDs disks are character devices, used in whole sectors. A
// disk that says that it can be trimmed is, but on OpenBSD: by DKIOCUNMAP, DIOCGDELETE, or
// IOCTL_STORAGE_MANAGE_DATA_SET_ATTRIBUTES on Windows, not under Config.Force there. What was
// trimmed never counts as zeroes but on Linux. Elsewhere there are reading, writing
// and flushing, and the size of a disk must be named.
//
// The tests run on Linux, and as far as wine goes on what is Windows to them:
// wine has no sparse files, and no sizes of disks. For the other systems the code
// follows their manuals, and is compiled and vetted, and not run.
//
// # Exclusive use
//
// On Linux a block device that is opened for writing is claimed (O_EXCL), which
// fails while it is mounted, part of something else, or opened for writing a
// second time. A regular file is locked
// the way QEMU's programs lock images, so that an image that a virtual machine
// writes is refused, also for reading, which QEMU's programs allow for raw images;
// and a virtual machine refuses an image that is served for writing. Several
// servers may serve one image, as with qemu-nbd.
//
// macOS takes the same locks. On Windows the modes of sharing that files are
// opened with come to the same; a volume is locked and dismounted to be written,
// and so are all volumes of a disk. The BSDs take a shared flock, which keeps out
// those who want the file for themselves. Their kernels, and that of macOS, refuse
// to open a mounted disk for writing. Config.Force overrides all locks.
package file

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync/atomic"

	"nbd.example/nbd/block"
)

// Config says what to open. Only Path is needed.
type Config struct {
	Path     string
	ReadOnly bool
	// Direct bypasses the page cache. Requests are then aligned to the device's
	// blocks on their way, and the size must be a multiple of those. Not on every
	// system and file system.
	Direct bool
	// Sync makes every write stable before it returns.
	Sync bool
	// Map sends what is read again and again from a mapping of the file. Only on
	// Linux, and for regular files on local file systems.
	Map bool
	// Size is the size in bytes that is offered. 0 takes that of the file. A
	// regular file that is smaller grows, and one that is opened for reading
	// only must not be smaller.
	Size int64
	// Force opens what is in use by others.
	Force bool
	// Open opens files, as os.OpenFile does; it must pass the flags on. Nil
	// means os.OpenFile.
	Open func(name string, flag int, perm fs.FileMode) (*os.File, error)
	// Stat says what kind of file it is, before it is opened. Nil means os.Stat.
	// It is not asked about disks of Windows, which their names tell.
	Stat func(name string) (fs.FileInfo, error)
}

// File is a back end on one open file. Its methods may be called concurrently.
type File struct {
	f      *os.File
	fd     uintptr
	config Config
	size   atomic.Int64 // bytes; see Remeasure
	device bool         // a disk, not a regular file
	align  int64        // what every read and write must be aligned to, in bytes; 1 if nothing
	caps   block.Caps
	sys    system // what only this operating system has
}

var (
	_ block.Writer     = (*File)(nil)
	_ block.Flusher    = (*File)(nil)
	_ block.Trimmer    = (*File)(nil)
	_ block.ZeroWriter = (*File)(nil)
	_ block.Grower     = (*File)(nil)
)

// Open opens, locks and measures the file.
func Open(c Config) (*File, error) {
	if c.Open == nil {
		c.Open = os.OpenFile
	}
	if c.Stat == nil {
		c.Stat = os.Stat
	}
	f := &File{config: c, align: 1}
	if err := f.open(); err != nil {
		return nil, fmt.Errorf("open %s: %w", c.Path, err)
	}
	if err := f.prepare(); err != nil {
		f.Close()
		return nil, fmt.Errorf("open %s: %w", c.Path, err)
	}
	f.caps = f.abilities()
	if err := f.mapFile(); err != nil {
		f.Close()
		return nil, fmt.Errorf("open %s: %w", c.Path, err)
	}
	return f, nil
}

func (f *File) open() error {
	flag := os.O_RDWR
	if f.config.ReadOnly {
		flag = os.O_RDONLY
	}
	// The kind of file decides on the flags; asking before opening keeps a pipe
	// or a terminal from being opened at all.
	if f.device = isDiskName(f.config.Path); !f.device {
		info, err := f.config.Stat(f.config.Path)
		if err != nil {
			return plain(err)
		}
		if f.device, err = isDevice(info.Mode()); err != nil {
			return err
		}
	}
	file, err := f.config.Open(f.config.Path, flag|f.openFlags(), 0)
	if err != nil {
		return f.explainOpen(plain(err))
	}
	f.f, f.fd = file, file.Fd()
	return nil
}

// isDevice tells a disk from a regular file, and refuses all else.
func isDevice(mode fs.FileMode) (bool, error) {
	switch {
	case mode.IsRegular():
		return false, nil
	case mode&os.ModeDevice != 0 && (mode&os.ModeCharDevice == 0 || rawCharacterDevices):
		return true, nil
	}
	return false, fmt.Errorf("it is %s; an export is a regular file or a disk", kindName(mode))
}

func kindName(mode fs.FileMode) string {
	switch {
	case mode.IsDir():
		return "a directory"
	case mode&os.ModeNamedPipe != 0:
		return "a pipe"
	case mode&os.ModeSocket != 0:
		return "a socket"
	case mode&os.ModeCharDevice != 0:
		return "a character device"
	}
	return "of the kind " + mode.Type().String()
}

// plain takes the operation and the path off an error of package os, since the
// caller names them.
func plain(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}

// prepare makes the open file ready for use: it locks and measures it, and gives
// it the size that the configuration wants.
func (f *File) prepare() error {
	// Between the question and the opening, the name may have been given to
	// something else.
	if info, err := f.f.Stat(); err == nil && !isDiskName(f.config.Path) {
		if device, err := isDevice(info.Mode()); err != nil {
			return err
		} else if device != f.device {
			return errors.New("it was replaced while it was opened; try again")
		}
	}
	if !f.config.Force {
		if err := f.lock(); err != nil {
			return err
		}
	}
	size, err := f.measure()
	if err != nil {
		return err
	}
	if err := f.findAlignment(); err != nil {
		return err
	}
	want := f.config.Size
	if want == 0 {
		want = size
	}
	f.size.Store(want)
	return f.fit(size)
}

// Remeasure implements block.Grower. A size that the configuration wants stays. What is
// known of the pages of the file in memory is known up to the size that it was opened
// with, so that what comes behind is copied on its way to sockets.
func (f *File) Remeasure() (int64, error) {
	size := f.size.Load()
	if f.config.Size != 0 {
		return size, nil
	}
	now, err := f.currentSize()
	if err != nil {
		return 0, fmt.Errorf("size of %s: %w", f.config.Path, err)
	}
	for now > size && !f.size.CompareAndSwap(size, roundDown(now, f.align)) {
		size = f.size.Load()
	}
	return now, nil
}

// currentSize measures an open file again. Where the system would not tell of a disk
// that it has grown, that is the size that it was opened with.
func (f *File) currentSize() (int64, error) {
	if f.device {
		return f.diskSize()
	}
	info, err := f.f.Stat()
	if err != nil {
		return 0, plain(err)
	}
	return info.Size(), nil
}

// unknownSize is what measure returns where the system does not tell.
const unknownSize = -1

// fit sees to it that there are as many bytes as are offered. The file has size.
func (f *File) fit(size int64) error {
	want := f.size.Load()
	switch {
	case want == unknownSize && f.config.Size == 0:
		return errors.New("the system does not tell the size of this disk; name the size")
	case want < 0:
		return fmt.Errorf("the wanted size of %d bytes is negative", want)
	case want%f.align != 0:
		return fmt.Errorf("its size of %d bytes is not a multiple of %d, the blocks that it is used in; name a smaller size%s", want, f.align, f.orNotDirect())
	case want <= size || size == unknownSize:
		return nil
	case f.device || f.config.ReadOnly:
		return fmt.Errorf("it has %d bytes, fewer than the wanted %d", size, want)
	}
	if err := f.lockGrowth(); err != nil {
		return err
	}
	if err := f.f.Truncate(want); err != nil {
		return fmt.Errorf("growing it from %d to %d bytes: %w", size, want, plain(err))
	}
	return nil
}

func (f *File) orNotDirect() string {
	if f.config.Direct {
		return ", or do without direct I/O"
	}
	return ""
}

// Caps describes the file.
func (f *File) Caps() block.Caps { return f.caps }

func (f *File) abilities() block.Caps {
	c := block.Caps{Size: f.size.Load(), ReadOnly: f.config.ReadOnly, MultiConn: true, Instance: f.instance()}
	if f.align > 1 {
		c.BlockSize.Minimum = f.align
		c.BlockSize.Preferred = max(f.align, 4096)
	}
	f.sysAbilities(&c)
	return c
}
