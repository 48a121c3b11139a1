package cow

import (
	"os"
	"syscall"
)

// punchHole makes a hole in f, if its file system can. If not, the room stays
// taken until it is used again.
func punchHole(f *os.File, off, n int64) {
	const keepSize, punch = 1, 2 // FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE
	c, err := f.SyscallConn()
	if err != nil {
		return
	}
	c.Control(func(fd uintptr) { syscall.Fallocate(int(fd), keepSize|punch, off, n) })
}
