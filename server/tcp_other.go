//go:build !darwin && !freebsd && !linux && !windows

package server

import (
	"time"
)

// setUserTimeout does nothing: this system has no such option. The keepalive
// probes alone find a peer that vanished, and its own limits on retransmission.
func setUserTimeout(tcpConn, time.Duration) error { return nil }
