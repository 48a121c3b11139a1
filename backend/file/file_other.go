//go:build !linux

package file

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"

	"nbd.example/nbd/block"
	"nbd.example/nbd/internal/fileid"
)

// stableFlag says that writing to a file that was opened for it reaches the
// medium. What such a flag is worth differs between systems, and for disks there
// is none, so every write is followed by a flush instead.
const stableFlag = false

func (f *File) mapFile() error {
	if f.config.Map {
		return errors.New("the parameter map is not supported on this system")
	}
	return nil
}

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
	if f.device {
		f.align = f.sectorSize()
	}
	if f.config.Direct {
		if err := f.direct(); err != nil {
			return err
		}
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
	if f.device && !c.ReadOnly && f.canTrim() {
		c.Trim = block.Native
		f.sys.trims.Store(true)
	}
	if c.ReadOnly {
		c.Zero = block.Auto
	}
	if !f.findsHoles() {
		c.Extents = block.Emulated
	}
}

// instance names a file or a disk by what the system knows it by, so that one
// that was replaced is another. Where that is not known, the contents are new
// each time: a disk of the same name may be another tomorrow.
func (f *File) instance() string {
	name := fileid.Name(f.f)
	if f.device {
		name = f.diskName()
	}
	if name == "" {
		return ""
	}
	sum := sha256.Sum256([]byte(name))
	return fmt.Sprintf("%x", sum[:16])
}

func (f *File) writeStable(p []byte, off int64) error {
	if err := f.writeAt(p, off); err != nil {
		return err
	}
	return f.finish(true)
}

func (f *File) discard(off, n int64) error {
	switch {
	case f.makesHoles():
		return f.punch(off, n)
	case !f.sys.trims.Load():
		return errors.ErrUnsupported
	}
	err := f.trim(off, n)
	if errors.Is(err, errors.ErrUnsupported) {
		f.sys.trims.Store(false) // it is not asked again
	}
	return err
}

// zero makes a hole. There is no call that zeroes and keeps what is allocated.
func (f *File) zero(_ context.Context, off, n int64, noHole, _ bool) error {
	if noHole || !f.makesHoles() {
		return errors.ErrUnsupported
	}
	return f.punch(off, n)
}
