package server

import (
	"net"
	"runtime"
	"syscall"
	"time"
)

const (
	defaultIdle        = 30 * time.Second
	defaultInterval    = 10 * time.Second
	defaultCount       = 6
	defaultUserTimeout = 5 * time.Minute
)

// orDefault resolves a setting of which 0 is the default and less means off.
func orDefault[T int | time.Duration](v, def T) T {
	if v == 0 {
		return def
	}
	return v
}

// tcpConn is a connection of TCP, whoever it is made by.
type tcpConn interface {
	syscall.Conn
	SetNoDelay(bool) error
	SetKeepAliveConfig(net.KeepAliveConfig) error
}

// apply sets the options of a TCP connection, and does nothing to others.
func (k *KeepAlive) apply(conn net.Conn) error {
	tcp, ok := conn.(tcpConn)
	if !ok {
		return nil
	}
	// Replies are gathered before they are written; waiting for more would only
	// add to their latency.
	if err := tcp.SetNoDelay(true); err != nil {
		return err
	}
	idle, interval, count := orDefault(k.Idle, defaultIdle), orDefault(k.Interval, defaultInterval), orDefault(k.Count, defaultCount)
	probes := net.KeepAliveConfig{Enable: idle > 0 && interval > 0 && count > 0, Idle: idle, Interval: interval, Count: count}
	if runtime.GOOS == "openbsd" { // has one set of numbers for all sockets (sysctl net.inet.tcp)
		probes.Idle, probes.Interval, probes.Count = -1, -1, -1
	}
	if err := tcp.SetKeepAliveConfig(probes); err != nil {
		return err
	}
	if t := orDefault(k.UserTimeout, defaultUserTimeout); t > 0 {
		return setUserTimeout(tcp, t)
	}
	return nil
}
