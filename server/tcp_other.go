//go:build !darwin && !freebsd && !linux && !windows

package server

import (
	"net"
	"time"
)

// setUserTimeout does nothing: this system has no such option. The keepalive
// probes alone find a peer that vanished, and its own limits on retransmission.
func setUserTimeout(*net.TCPConn, time.Duration) error { return nil }
