//go:build !unix

package main

import "log/slog"

// syslogSink leads nowhere: this system has no syslog.
func syslogSink() func(slog.Level, []byte) { return func(slog.Level, []byte) {} }
