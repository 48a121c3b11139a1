//go:build !unix

package proglog

import "log/slog"

// syslogSink is nil: this system has no syslog.
func syslogSink(string) func(slog.Level, []byte) { return nil }
