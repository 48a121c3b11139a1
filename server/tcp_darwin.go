package server

import "golang.org/x/sys/unix"

const secondsOption = "TCP_RXT_CONNDROPTIME"

// setSeconds limits how long data is sent again in vain.
func setSeconds(fd uintptr, seconds int) error {
	return unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_RXT_CONNDROPTIME, seconds)
}
