//go:build !linux

package file

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"runtime"

	"nbd.example/nbd/block"
)

// rawCharacterDevices says whether disks are character devices here, as on the
// BSDs and macOS.
const rawCharacterDevices = true

// stableFlag says that writing to a file that was opened with O_SYNC reaches the
// medium. On macOS it may stay in the cache of the disk.
const stableFlag = runtime.GOOS != "darwin"

func (f *File) openFlags() int {
	if f.config.Sync && stableFlag {
		return os.O_SYNC
	}
	return 0
}

func (f *File) explainOpen(err error) error { return err }

// lock takes no locks: there are none that programs on these systems agree on.
func (f *File) lock() error { return nil }

func (f *File) lockGrowth() error { return nil }

func (f *File) mapFile() error {
	if f.config.Map {
		return errors.New("the parameter map is not supported on this system")
	}
	return nil
}

func (f *File) sysClose() {}

func (f *File) measure() (int64, error) {
	if f.device {
		return f.measureDisk()
	}
	info, err := f.f.Stat()
	if err != nil {
		return 0, plain(err)
	}
	return info.Size(), nil
}

func (f *File) findAlignment() error {
	if f.config.Direct {
		return errors.New("direct I/O is not supported on this system")
	}
	if f.device {
		f.align = f.sectorSize()
	}
	if f.align < 1 || f.align > maxAlignment || f.align&(f.align-1) != 0 {
		return fmt.Errorf("its sectors have %d bytes, which is no power of two up to %d", f.align, maxAlignment)
	}
	return nil
}

// sysAbilities leaves out what this system has no call for.
func (f *File) sysAbilities(c *block.Caps) {
	if !f.makesHoles() {
		c.Trim, c.Zero = block.None, block.Emulated
	}
	if c.ReadOnly {
		c.Zero = block.Auto
	}
	if !f.findsHoles() {
		c.Extents = block.Emulated
	}
}

// instance names a file by what the system knows it by, so that one that was
// replaced is another, and a disk by its device. Where that is not known, the
// contents are new each time.
func (f *File) instance() string {
	name := "disk " + f.config.Path
	if !f.device {
		name = f.fileName()
	}
	if name == "" {
		return ""
	}
	sum := sha256.Sum256([]byte(name))
	return fmt.Sprintf("%x", sum[:16])
}

func (f *File) datasync() error { return f.f.Sync() }

func (f *File) writeStable(p []byte, off int64) error {
	if err := f.writeAt(p, off); err != nil {
		return err
	}
	return f.finish(true)
}

func (f *File) discard(off, n int64) error {
	if !f.makesHoles() {
		return errors.ErrUnsupported
	}
	return f.punch(off, n)
}

// zero makes a hole. There is no call that zeroes and keeps what is allocated.
func (f *File) zero(_ context.Context, off, n int64, noHole, _ bool) error {
	if noHole || !f.makesHoles() {
		return errors.ErrUnsupported
	}
	return f.punch(off, n)
}
