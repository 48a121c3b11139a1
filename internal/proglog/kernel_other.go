//go:build unix && !linux

package proglog

import "log/slog"

// kernelSink is nil: only Linux has such a log.
func kernelSink() func(slog.Level, []byte) { return nil }
