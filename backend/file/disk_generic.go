//go:build !darwin && !freebsd && !linux && !openbsd && !windows

package file

func (f *File) measureDisk() (int64, error) { return unknownSize, nil }

// sectorSize is a guess that is right for nearly every disk.
func (f *File) sectorSize() int64 { return 512 }

func (f *File) diskName() string { return "" }
