//go:build !linux

package server

import "net"

// peerProcess tells who has connected to a unix socket; here the system does not.
func peerProcess(net.Conn) *Process { return nil }
