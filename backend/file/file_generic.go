//go:build !darwin && !freebsd && !linux && !windows

package file

import "errors"

type system struct{}

func (f *File) openFlags() int { return 0 }

func (f *File) direct() error { return errors.New("direct I/O is not supported on this system") }

func (f *File) datasync() error { return f.f.Sync() }

func (f *File) findsHoles() bool { return false }

func (f *File) makesHoles() bool { return false }

func (f *File) discardAlign() int64 { return f.align }

func (f *File) punch(int64, int64) error { return errors.ErrUnsupported }
