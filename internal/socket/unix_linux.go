package socket

import "net"

// Unix is a connection of a unix socket. It is package net's, whose reader can linger.
type Unix struct {
	*net.UnixConn
	fd   int
	spin habit
}

// ownUnix returns nc as a Unix, or as it is if it is closed.
func ownUnix(nc *net.UnixConn) net.Conn {
	raw, err := nc.SyscallConn()
	if err != nil {
		return nc
	}
	u := &Unix{UnixConn: nc}
	if raw.Control(func(fd uintptr) { u.fd = int(fd) }) != nil {
		return nc
	}
	return u
}

// Linger looks for a moment whether there is something to read, if that has lately been
// worth it, and reports what it saw. deep says that several requests came at once the last
// time: whoever sends so is not back that soon.
//
// Only the one who reads may call it, in a function that is called by the RawConn's Read:
// else the descriptor might be another's meanwhile.
func (u *Unix) Linger(deep bool) bool { return !deep && spin(&u.spin, u.fd) }
