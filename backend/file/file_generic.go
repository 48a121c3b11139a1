//go:build !darwin && !freebsd && !linux && !windows

package file

import (
	"errors"
	"sync/atomic"
)

type system struct {
	trims atomic.Bool // never
}

func (f *File) openFlags() int { return 0 }

func (f *File) direct() error { return errors.New("direct I/O is not supported on this system") }

func (f *File) datasync() error { return f.f.Sync() }

func (f *File) findsHoles() bool { return false }

func (f *File) makesHoles() bool { return false }

func (f *File) discardAlign() int64 { return f.align }

func (f *File) punch(int64, int64) error { return errors.ErrUnsupported }

// canTrim reports that there is no request that gives up a range of a disk.
func (f *File) canTrim() bool { return false }

func (f *File) trim(int64, int64) error { return errors.ErrUnsupported }
