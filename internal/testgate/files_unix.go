//go:build unix

package testgate

import "syscall"

// maxFiles returns how many files this process may have open at once. The Go
// runtime has raised the soft limit to the hard one.
func maxFiles() uint64 {
	var l syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
		return 0
	}
	return uint64(max(l.Max, 0))
}
