//go:build !linux

package proglog

// kernelSink is nil: only Linux has such a log.
func kernelSink() Sink { return nil }
