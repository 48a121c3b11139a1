package server

import (
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// setUserTimeout sets TCP_USER_TIMEOUT; see tcp(7).
func setUserTimeout(conn tcpConn, t time.Duration) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	ms := int(min(t.Milliseconds(), 1<<31-1))
	var failed error
	err = raw.Control(func(fd uintptr) {
		failed = os.NewSyscallError("setsockopt TCP_USER_TIMEOUT", unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, max(ms, 1)))
	})
	if err != nil {
		return err
	}
	return failed
}
