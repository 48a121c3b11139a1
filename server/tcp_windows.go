package server

import (
	"errors"

	"golang.org/x/sys/windows"
)

const secondsOption = "TCP_MAXRT"

// setSeconds limits how long data is sent again in vain. wine has no such option.
func setSeconds(fd uintptr, seconds int) error {
	err := windows.SetsockoptInt(windows.Handle(fd), windows.IPPROTO_TCP, windows.TCP_MAXRT, seconds)
	if errors.Is(err, windows.WSAENOPROTOOPT) {
		return nil
	}
	return err
}
