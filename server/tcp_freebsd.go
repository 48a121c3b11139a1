package server

import (
	"errors"

	"golang.org/x/sys/unix"
)

const secondsOption = "TCP_MAXUNACKTIME"

// setSeconds limits how long data may stay without acknowledgement. The option,
// from netinet/tcp.h, came with FreeBSD 13.
func setSeconds(fd uintptr, seconds int) error {
	const maxUnackTime = 68
	err := unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, maxUnackTime, seconds)
	if errors.Is(err, unix.ENOPROTOOPT) {
		return nil
	}
	return err
}
