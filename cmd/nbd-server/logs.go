package main

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode"

	"nbd.example/nbd/internal/serverflags"
)

// logs decides what log lines look like and where they go. That changes once,
// when the server lets go of the terminal.
type logs struct {
	format string
	level  slog.Level

	mu    sync.Mutex
	sink  func(slog.Level, []byte)
	stamp bool // lines need a time
	// stampLater says that they will, once the start is over: who starts a
	// server and reads what went wrong needs none.
	stampLater bool
	last       slog.Level // of the line that is being written
}

// newLogs returns the logs for the foreground: standard error, or syslog for a
// client on standard input whose socket is standard error, too.
func newLogs(env *environment, f *serverflags.Flags) *logs {
	l := &logs{format: f.LogFormat, level: slog.LevelInfo}
	switch f.LogLevel {
	case "":
		if f.Debug {
			l.level = slog.LevelDebug
		}
	case "debug":
		l.level = slog.LevelDebug
	case "warn":
		l.level = slog.LevelWarn
	case "error":
		l.level = slog.LevelError
	}
	switch {
	case env.service != nil:
		l.toSyslog(env.service.log)
	case f.Inetd && sameFile(env.stdin, env.stderr):
		l.toSyslog(syslogSink())
	case isJournal(env.stderr, env.getenv("JOURNAL_STREAM")):
		l.sink = journal(env.stderr)
	default:
		l.sink = func(_ slog.Level, line []byte) { env.stderr.Write(line) }
		l.stampLater = !isTerminal(env.stderr)
	}
	return l
}

// toSyslog sends the log to the system's log from now on, or nowhere if sink is
// nil: there may be none.
func (l *logs) toSyslog(sink func(slog.Level, []byte)) {
	if sink == nil {
		sink = func(slog.Level, []byte) {}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sink, l.stampLater = sink, false
}

// started says that the start is over.
func (l *logs) started() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stamp = l.stampLater
}

// journal writes lines as systemd's journal wants them: with their priority.
func journal(w io.Writer) func(slog.Level, []byte) {
	return func(level slog.Level, line []byte) {
		priority := 7
		switch {
		case level >= slog.LevelError:
			priority = 3
		case level >= slog.LevelWarn:
			priority = 4
		case level >= slog.LevelInfo:
			priority = 6
		}
		w.Write(append([]byte("<"+strconv.Itoa(priority)+">"), line...))
	}
}

func isTerminal(f *os.File) bool {
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

func sameFile(a, b *os.File) bool {
	x, err := a.Stat()
	y, bad := b.Stat()
	return err == nil && bad == nil && os.SameFile(x, y)
}

// Write takes a line from a handler of package slog.
func (l *logs) Write(line []byte) (int, error) {
	l.sink(l.last, line)
	return len(line), nil
}

// handler returns the handler for the format.
func (l *logs) handler() slog.Handler {
	o := &slog.HandlerOptions{Level: l.level}
	var h slog.Handler
	switch l.format {
	case "json":
		h = slog.NewJSONHandler(l, o)
	case "logfmt":
		h = slog.NewTextHandler(l, o)
	default:
		h = &plain{logs: l}
	}
	return &locked{logs: l, next: h}
}

// locked lets one record through at a time, and remembers its level for Write.
type locked struct {
	logs *logs
	next slog.Handler
}

// Enabled compares with the level that was asked for.
func (h *locked) Enabled(_ context.Context, level slog.Level) bool { return level >= h.logs.level }

// Handle writes one record.
func (h *locked) Handle(ctx context.Context, r slog.Record) error {
	h.logs.mu.Lock()
	defer h.logs.mu.Unlock()
	h.logs.last = r.Level
	return h.next.Handle(ctx, r)
}

// WithAttrs returns a handler that adds attributes.
func (h *locked) WithAttrs(a []slog.Attr) slog.Handler {
	return &locked{h.logs, h.next.WithAttrs(a)}
}

// WithGroup returns a handler that puts what follows in a group.
func (h *locked) WithGroup(name string) slog.Handler {
	return &locked{h.logs, h.next.WithGroup(name)}
}

// plain is the handler for people: "nbd-server: message key=value".
type plain struct {
	logs   *logs
	prefix string // of keys: the groups
	attrs  []byte // formatted
}

// Enabled is not asked: locked has decided.
func (h *plain) Enabled(context.Context, slog.Level) bool { return true }

// Handle writes one record.
func (h *plain) Handle(_ context.Context, r slog.Record) error {
	var b bytes.Buffer
	if h.logs.stamp {
		b.WriteString(r.Time.Format(time.RFC3339) + " ")
	}
	b.WriteString("nbd-server: ")
	switch {
	case r.Level >= slog.LevelError:
	case r.Level >= slog.LevelWarn:
		b.WriteString("warning: ")
	case r.Level < slog.LevelInfo:
		b.WriteString("debug: ")
	}
	b.WriteString(printable(r.Message))
	b.Write(h.attrs)
	r.Attrs(func(a slog.Attr) bool {
		appendAttr(&b, h.prefix, a)
		return true
	})
	b.WriteByte('\n')
	_, err := h.logs.Write(b.Bytes())
	return err
}

// WithAttrs returns a handler that adds attributes.
func (h *plain) WithAttrs(attrs []slog.Attr) slog.Handler {
	b := bytes.NewBuffer(bytes.Clone(h.attrs))
	for _, a := range attrs {
		appendAttr(b, h.prefix, a)
	}
	return &plain{h.logs, h.prefix, b.Bytes()}
}

// WithGroup returns a handler that puts name in front of keys.
func (h *plain) WithGroup(name string) slog.Handler {
	if name == "" {
		return h
	}
	return &plain{h.logs, h.prefix + name + ".", h.attrs}
}

func appendAttr(b *bytes.Buffer, prefix string, a slog.Attr) {
	v := a.Value.Resolve()
	if a.Equal(slog.Attr{}) {
		return
	}
	if v.Kind() == slog.KindGroup {
		if a.Key != "" {
			prefix += a.Key + "."
		}
		for _, inner := range v.Group() {
			appendAttr(b, prefix, inner)
		}
		return
	}
	text := v.String()
	if v.Kind() == slog.KindDuration {
		text = v.Duration().Round(time.Millisecond).String()
	}
	if text == "" || strings.ContainsFunc(text, func(r rune) bool {
		return r == ' ' || r == '"' || r == '=' || !unicode.IsPrint(r)
	}) {
		text = strconv.Quote(text)
	}
	b.WriteString(" " + prefix + a.Key + "=" + text)
}

// printable quotes a message if it holds what a terminal would obey.
func printable(s string) string {
	if strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) {
		s = strconv.Quote(s)
		return s[1 : len(s)-1]
	}
	return s
}
