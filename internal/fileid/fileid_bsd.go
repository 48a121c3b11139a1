//go:build darwin || freebsd || netbsd || openbsd

package fileid

import (
	"fmt"
	"os"
	"syscall"
)

// Name is made of the file system, the file's number, and when it was made, since numbers
// are given anew. It is empty where the system does not tell.
func Name(f *os.File) string {
	info, err := f.Stat()
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
