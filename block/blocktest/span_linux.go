package blocktest

import (
	"fmt"
	"io"
	"syscall"

	"nbd.example/nbd/block"
)

// readSpan fills p with the bytes of s, and reports whether it could.
func readSpan(s block.Span, p []byte) (bool, error) {
	for done := 0; done < len(p); {
		n, err := syscall.Pread(int(s.FD), p[done:], s.Off+int64(done))
		if err == syscall.EINTR {
			continue
		}
		if n == 0 && err == nil {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return false, fmt.Errorf("span of %d bytes at %d of file %d: pread: %w", s.Len, s.Off, s.FD, err)
		}
		done += n
	}
	return true, nil
}
