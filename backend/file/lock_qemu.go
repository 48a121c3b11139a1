//go:build darwin || linux

package file

import (
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"
)

// QEMU's programs lock single bytes of an image, one for each permission that
// they hold and one for each that they do not share with others.
const (
	lockHeld     = 100 // a shared lock at lockHeld+p: somebody holds permission p
	lockUnshared = 200 // a shared lock at lockUnshared+p: somebody shares it with nobody

	permRead   = 0 // read consistent data
	permWrite  = 1
	permResize = 3
)

// lock takes the locks of one who reads, or reads and writes, and shares
// everything. It fails where another does not share what is needed.
func (f *File) lock() error {
	if !f.config.ReadOnly {
		return f.hold(permRead, permWrite)
	}
	if err := f.hold(permRead); err != nil {
		return err
	}
	// QEMU lets others read an image of which it has no format to guard, but what
	// they read is a file system that changes below them. Who writes and shares
	// that with nobody is a virtual machine; another server shares it.
	if !f.device && f.held(lockHeld+permWrite) && f.held(lockUnshared+permWrite) {
		return f.inUse()
	}
	return nil
}

// lockGrowth fails where another relies on the size. It takes no lock: growing is
// done in a moment.
func (f *File) lockGrowth() error {
	if !f.config.Force && f.held(lockUnshared+permResize) {
		return f.inUse()
	}
	return nil
}

func (f *File) hold(perms ...int64) error {
	if f.device {
		return nil // the kernel keeps account of disks: on Linux by O_EXCL
	}
	// As with QEMU: first tell of one's own, then look for those of others.
	for _, p := range perms {
		if err := f.take(lockHeld + p); err != nil {
			if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EACCES) {
				return f.inUse()
			}
			return nil // a file system without locks
		}
	}
	for _, p := range perms {
		if f.held(lockUnshared + p) {
			return f.inUse()
		}
	}
	return nil
}

func (f *File) inUse() error {
	return fmt.Errorf("%w: a virtual machine or another program uses the image for itself; stop it, or override with the parameter force", unix.EBUSY)
}

func (f *File) take(at int64) error {
	return unix.FcntlFlock(f.fd, ofdSetLock, &unix.Flock_t{Type: unix.F_RDLCK, Whence: io.SeekStart, Start: at, Len: 1})
}

// held reports whether somebody else has a lock there.
func (f *File) held(at int64) bool {
	l := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart, Start: at, Len: 1}
	return unix.FcntlFlock(f.fd, ofdGetLock, &l) == nil && l.Type != unix.F_UNLCK
}
