//go:build !unix

package proglog

// syslogSink is nil: this system has no syslog.
func syslogSink(string) Sink { return nil }
