//go:build darwin || freebsd || netbsd || openbsd

package file

import (
	"fmt"
	"syscall"
)

// fileName is made of the file system, the file's number, and when it was made,
// since numbers are given anew.
func (f *File) fileName() string {
	info, err := f.f.Stat()
	if err != nil {
		return ""
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return ""
	}
	born := birth(st)
	if born.Sec == 0 && born.Nsec == 0 {
		return "" // the file system does not keep it
	}
	return fmt.Sprint("file ", st.Dev, " ", st.Ino, " born ", born.Sec, " ", born.Nsec)
}
