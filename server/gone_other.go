//go:build !unix && !windows

package server

import "net"

// hungUp cannot tell.
func hungUp(net.Conn) bool { return false }
