//go:build !linux

package file

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"

	"nbd.example/nbd/block"
)

// rawCharacterDevices says whether disks are character devices here, as on the
// BSDs and macOS.
const rawCharacterDevices = true

// system is empty: this version uses what package os offers everywhere.
type system struct{}

func (f *File) openFlags() int {
	if f.config.Sync {
		return os.O_SYNC
	}
	return 0
}

func (f *File) explainOpen(err error) error { return plain(err) }

// lock takes no locks: there are none that programs on these systems agree on.
func (f *File) lock() error { return nil }

func (f *File) deviceSize() (int64, error) {
	size, err := f.f.Seek(0, io.SeekEnd)
	if err == nil && size == 0 && f.device {
		err = errors.New("the system does not tell the size of this device; name the size")
	}
	return size, plain(err)
}

func (f *File) findAlignment() error {
	if f.config.Direct {
		return errors.New("direct I/O is not supported on this system")
	}
	return nil
}

// sysAbilities leaves out what this version has no call for.
func (f *File) sysAbilities(c *block.Caps) {
	c.Trim, c.Zero = block.None, block.Emulated
	if f.config.ReadOnly {
		c.Zero = block.Auto
	}
}

// instance names the file by its path, size aside: these systems have no common
// way to name a file itself.
func (f *File) instance() string {
	return fmt.Sprintf("%x", sha256.Sum256([]byte(f.f.Name())))[:32]
}

func (f *File) datasync() error { return f.f.Sync() }

func (f *File) writeStable(p []byte, off int64) error {
	return f.finish(f.writeAt(p, off), block.FUA)
}

func (f *File) discardAlign() int64 { return 1 }

func (f *File) discard(int64, int64) error { return errors.ErrUnsupported }

func (f *File) zero(int64, int64, bool, bool) error { return errors.ErrUnsupported }
