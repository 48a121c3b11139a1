//go:build !linux && !darwin && !freebsd && !windows

package file

import (
	"errors"
	"os"
)

var stat = os.Stat

type system struct{}

func (f *File) measureDisk() (int64, error) { return unknownSize, nil }

// sectorSize is a guess that is right for nearly every disk that the BSDs know.
func (f *File) sectorSize() int64 { return 512 }

func (f *File) fileName() string { return "" }

func (f *File) findsHoles() bool { return false }

func (f *File) makesHoles() bool { return false }

func (f *File) discardAlign() int64 { return f.align }

func (f *File) punch(int64, int64) error { return errors.ErrUnsupported }
