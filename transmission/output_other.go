//go:build !linux

package transmission

import "syscall"

// plainSocket returns nil: here all connections are streams.
func plainSocket(any) syscall.RawConn { return nil }

// enlarge leaves sockets as they are.
func enlarge(int) {}

func (o *output) step(uintptr) { panic("transmission: no plain sockets here") }
