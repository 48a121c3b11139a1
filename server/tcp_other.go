//go:build !linux

package server

import (
	"net"
	"time"
)

// setUserTimeout does nothing: only Linux has TCP_USER_TIMEOUT. The keepalive
// probes alone find a peer that vanished.
func setUserTimeout(*net.TCPConn, time.Duration) error { return nil }
