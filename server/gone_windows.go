package server

import (
	"unsafe"

	"golang.org/x/sys/windows"
)

// wsaPoll is not in package windows. It waits, here for nothing, until one of the sockets is ready.
var wsaPoll = windows.NewLazySystemDLL("ws2_32.dll").NewProc("WSAPoll")

// pollFD is WSAPOLLFD.
type pollFD struct {
	fd              windows.Handle
	events, revents int16
}

// What WSAPoll tells.
const (
	pollReadable = 0x100     // POLLRDNORM
	pollEnded    = 0x2 | 0x1 // POLLHUP, POLLERR
	peek         = 0x2       // MSG_PEEK
)

// peerGone tells whether the peer of a socket has closed its side. A socket that can be read is
// asked for a byte, which stays where it is: Windows does not tell every end by POLLHUP.
func peerGone(fd int) bool {
	p := pollFD{fd: windows.Handle(fd), events: pollReadable}
	if wsaPoll.Find() != nil {
		return false
	}
	n, _, _ := wsaPoll.Call(uintptr(unsafe.Pointer(&p)), 1, 0)
	switch {
	case int32(n) <= 0:
		return false
	case p.revents&pollEnded != 0:
		return true
	case p.revents&pollReadable == 0:
		return false
	}
	var b [1]byte
	var got uint32
	flags := uint32(peek)
	err := windows.WSARecv(p.fd, &windows.WSABuf{Len: 1, Buf: &b[0]}, 1, &got, &flags, nil, nil)
	return err == nil && got == 0 || err == windows.WSAECONNRESET || err == windows.WSAECONNABORTED
}
