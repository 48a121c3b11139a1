package trlog

import (
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// writeAll writes one after the other, with one call to the system if it can, and returns
// how many bytes it has written.
func writeAll(f File, list [][]byte) (done int64, err error) {
	file, ok := f.(*os.File)
	if !ok || len(list) < 2 {
		return writeEach(f, list)
	}
	raw, err := file.SyscallConn()
	if err != nil {
		return 0, err
	}
	for len(list) > 0 {
		var n int
		var bad error
		err := raw.Write(func(fd uintptr) bool {
			n, bad = unix.Writev(int(fd), list[:min(len(list), mostStretches)])
			return bad != unix.EAGAIN // else it waits, and calls again
		})
		switch {
		case err != nil:
		case bad == unix.EINTR:
			continue
		case bad != nil:
			err = &os.PathError{Op: "writev", Path: file.Name(), Err: bad}
		case n == 0:
			err = io.ErrShortWrite
		}
		if err != nil {
			return done, err
		}
		done += int64(n)
		list = rest(list, n)
	}
	return done, nil
}

// mostStretches is how many one call takes.
const mostStretches = 1024

// rest returns what is left of list behind n bytes, and changes it.
func rest(list [][]byte, n int) [][]byte {
	for len(list) > 0 && n >= len(list[0]) {
		n -= len(list[0])
		list = list[1:]
	}
	if len(list) > 0 {
		list[0] = list[0][n:]
	}
	return list
}
