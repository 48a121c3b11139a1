//go:build darwin || freebsd || windows

package server

import (
	"os"
	"time"
)

// setUserTimeout sets what comes next to Linux's TCP_USER_TIMEOUT here: an option
// that counts in seconds.
func setUserTimeout(conn tcpConn, t time.Duration) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	seconds := int(min((t+time.Second-1)/time.Second, 1<<31-1))
	var failed error
	if err := raw.Control(func(fd uintptr) { failed = setSeconds(fd, seconds) }); err != nil {
		return err
	}
	return os.NewSyscallError("setsockopt "+secondsOption, failed)
}
