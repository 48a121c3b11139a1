//go:build !darwin && !freebsd && !linux && !netbsd && !openbsd && !windows

package file

// fileName is empty: not every one of these systems knows when a file was made.
func (f *File) fileName() string { return "" }
