//go:build unix

package main

import (
	"log/slog"
	"log/syslog"
	"strings"
)

// syslogSink writes to syslog. It is nil if there is none.
func syslogSink() func(slog.Level, []byte) {
	w, err := syslog.New(syslog.LOG_DAEMON|syslog.LOG_INFO, "nbd-server")
	if err != nil {
		return nil
	}
	return func(level slog.Level, line []byte) {
		text := strings.TrimPrefix(strings.TrimSuffix(string(line), "\n"), "nbd-server: ")
		// A line that is lost cannot be reported anywhere.
		switch {
		case level >= slog.LevelError:
			w.Err(text)
		case level >= slog.LevelWarn:
			w.Warning(text)
		case level >= slog.LevelInfo:
			w.Info(text)
		default:
			w.Debug(text)
		}
	}
}
