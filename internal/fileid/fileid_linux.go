package fileid

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Name is made of the file system, the file's number, and when it was made, since numbers
// are given anew. It is empty where the system does not tell.
func Name(f *os.File) string {
	var fs unix.Statfs_t
	var st unix.Statx_t
	if unix.Fstatfs(int(f.Fd()), &fs) != nil || unix.Statx(int(f.Fd()), "", unix.AT_EMPTY_PATH, unix.STATX_BASIC_STATS|unix.STATX_BTIME, &st) != nil {
		return ""
	}
	// The identity of the file system is better than the number of its device,
	// which may be another after a restart.
	name := fmt.Sprint("file ", fs.Fsid.Val)
	if fs.Fsid.Val == [2]int32{} {
		name = fmt.Sprint("file on ", st.Dev_major, st.Dev_minor)
	}
	if InMemory(&fs) {
		name += " in memory since " + Boot() // other files will have the same numbers
	}
	return fmt.Sprint(name, st.Ino, " born ", st.Btime.Sec, st.Btime.Nsec)
}

// InMemory tells a file system that has no disk below.
func InMemory(fs *unix.Statfs_t) bool {
	magic := uint32(fs.Type)
	return magic == unix.TMPFS_MAGIC || magic == unix.RAMFS_MAGIC
}

// Boot names the time since the machine was started, "" where that is not known.
func Boot() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}
