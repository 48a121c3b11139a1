package main

import (
	"log/slog"
	"os"

	"nbd.example/nbd/internal/proglog"
	"nbd.example/nbd/internal/serverflags"
)

// newLogs returns the log: that of the service manager, or standard error. A client on
// standard input may have its socket there, too: then the log goes to syslog or nowhere.
func newLogs(env *environment, f *serverflags.Flags) *proglog.Log {
	c := proglog.Config{
		Name: "nbd-server", Stderr: env.stderr, Format: f.LogFormat, Level: f.LogLevel, Journal: env.getenv("JOURNAL_STREAM"),
	}
	if c.Level == "" && f.Debug {
		c.Level = "debug"
	}
	if env.service != nil {
		c.Sink = env.service.log
	}
	if !f.Inetd || !sameFile(env.stdin, env.stderr) {
		return proglog.New(c)
	}
	if c.Sink == nil {
		c.Sink = func(slog.Level, []byte) {}
	}
	l := proglog.New(c)
	l.ToSyslog()
	return l
}

func sameFile(a, b *os.File) bool {
	x, err := a.Stat()
	y, bad := b.Stat()
	return err == nil && bad == nil && os.SameFile(x, y)
}
