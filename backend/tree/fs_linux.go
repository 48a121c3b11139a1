package tree

import (
	"crypto/sha256"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// syncsAll says that there is syncAll.
const syncsAll = true

// syncAll makes the file system stable. It tells of everything that could not be
// written back since f was opened.
func syncAll(f *os.File) error { return os.NewSyscallError("syncfs", unix.Syncfs(int(f.Fd()))) }

// instance names a folder, not its path.
func instance(f *os.File, size int64) string {
	var st unix.Statx_t
	var sys unix.Statfs_t
	if unix.Fstatfs(int(f.Fd()), &sys) != nil || unix.Statx(int(f.Fd()), "", unix.AT_EMPTY_PATH, unix.STATX_BASIC_STATS|unix.STATX_BTIME, &st) != nil {
		return ""
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "tree %d %x %d %d %d %d", size, sys.Fsid.Val, sys.Type, st.Ino, st.Btime.Sec, st.Btime.Nsec))
	return fmt.Sprintf("%x", sum[:16])
}
