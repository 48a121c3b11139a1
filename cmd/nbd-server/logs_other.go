//go:build !unix

package main

import "log/slog"

// syslogSink is nil: this system has no syslog.
func syslogSink() func(slog.Level, []byte) { return nil }
