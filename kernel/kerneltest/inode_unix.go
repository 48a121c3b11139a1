//go:build unix

package kerneltest

import (
	"os"
	"syscall"
)

// inode returns the number of a socket's inode, by which /proc/PID/fd names it.
func inode(f *os.File) uint64 {
	info, err := f.Stat()
	if err != nil {
		return 0
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		return uint64(st.Ino)
	}
	return 0
}
