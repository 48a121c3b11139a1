//go:build unix

package proglog

import (
	"log/slog"
	"log/syslog"
	"strings"
)

// syslogSink writes to syslog. It is nil if there is none.
func syslogSink(name string) Sink {
	w, err := syslog.New(syslog.LOG_DAEMON|syslog.LOG_INFO, name)
	if err != nil {
		return nil
	}
	return func(level slog.Level, line []byte) {
		text := strings.TrimPrefix(strings.TrimSuffix(string(line), "\n"), name+": ")
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
