package proglog

import (
	"fmt"
	"os"
	"syscall"
)

// isJournal tells whether f is the stream to systemd's journal that the variable
// JOURNAL_STREAM names, by device and inode.
func isJournal(f *os.File, stream string) bool {
	var s syscall.Stat_t
	if stream == "" || syscall.Fstat(int(f.Fd()), &s) != nil {
		return false
	}
	return stream == fmt.Sprintf("%d:%d", s.Dev, s.Ino)
}
