//go:build !linux && !windows

package file

import (
	"errors"
	"fmt"
	"syscall"
)

// rawCharacterDevices says whether disks are character devices here.
const rawCharacterDevices = true

// isDiskName is for systems whose disks are known by their names.
func isDiskName(string) bool { return false }

// sysError leaves errors as they are: the numbers are those that everybody knows.
func sysError(err error) error { return err }

// wrote is for systems that must remember what was written.
func (*system) wrote(int64, int) {}

func (f *File) sysClose() {}

func (f *File) explainOpen(err error) error {
	switch {
	case f.device && (errors.Is(err, syscall.EBUSY) || !f.config.ReadOnly && errors.Is(err, syscall.EPERM)):
		return fmt.Errorf("%w: the disk is mounted or used by something else; unmount it, or serve it read-only", err)
	case f.config.ReadOnly:
		return err
	case errors.Is(err, syscall.EROFS), errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM), errors.Is(err, syscall.ETXTBSY):
		return fmt.Errorf("%w: it cannot be opened for writing; serve it read-only, or change its permissions", err)
	}
	return err
}
