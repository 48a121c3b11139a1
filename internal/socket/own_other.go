//go:build !linux

package socket

import "net"

// Own returns nc.
func Own(nc net.Conn) net.Conn { return nc }
