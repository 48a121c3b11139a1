// Package proglog is how a program of this module says what happens: to the person
// who started it, to systemd's journal, or to syslog once it is in the background.
//
// Lines for people begin with the program's name, as those of every tool do, and need
// no time, which the reader knows. Where standard error is a file that somebody reads
// later they get one, once the start is over; the journal gets priorities in place of
// it. Text from others cannot harm a terminal: what is not printable is quoted.
package proglog

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
)

// Config says what the log looks like.
type Config struct {
	Name   string // the program's, without colon
	Stderr *os.File
	Format string // "text", which "" means as well, "logfmt" or "json"
	Level  string // "debug", "info", "warn" or "error"; "" means info
	// Journal is the variable JOURNAL_STREAM of the environment.
	Journal string
}

// Log decides what log lines look like and where they go. That changes once, when the
// program lets go of the terminal. Its methods may be called concurrently.
type Log struct {
	name   string
	format string
	level  slog.Level

	mu    sync.Mutex
	sink  func(slog.Level, []byte)
	stamp bool // lines need a time
	// stampLater says that they will, once the start is over: who starts a program
	// and reads what went wrong needs none.
	stampLater bool
	last       slog.Level // of the line that is being written

	queue *queue // to syslog; nil before ToSyslog
}

// New returns a log to standard error.
func New(c Config) *Log {
	l := &Log{name: c.Name, format: c.Format, level: slog.LevelInfo}
	switch c.Level {
	case "debug":
		l.level = slog.LevelDebug
	case "warn":
		l.level = slog.LevelWarn
	case "error":
		l.level = slog.LevelError
	}
	if isJournal(c.Stderr, c.Journal) {
		l.sink = journal(c.Stderr)
		return l
	}
	l.sink = func(_ slog.Level, line []byte) { c.Stderr.Write(line) }
	l.stampLater = !isTerminal(c.Stderr)
	return l
}

// Logger returns a logger that writes to l.
func (l *Log) Logger() *slog.Logger { return slog.New(l.handler()) }

// ToSyslog sends the log to the system's log from now on, or, where there is none, as in
// an initramfs, to the kernel's. It reports whether there is one of them; else lines lead
// nowhere.
//
// Nobody waits for syslog, which may itself wait for a disk, even for one that this
// process is to bring back: lines that it does not take in time are dropped.
func (l *Log) ToSyslog() bool {
	sink := syslogSink(l.name)
	if sink == nil {
		l.toSink(nil)
		return false
	}
	q := &queue{lines: make(chan line, queueLen)}
	go q.drain(sink)
	l.queue = q
	l.toSink(q.put)
	return true
}

// Flush waits until syslog has taken all lines, or for d.
func (l *Log) Flush(d time.Duration) {
	if l.queue == nil {
		return
	}
	done := make(chan struct{})
	select {
	case l.queue.lines <- line{done: done}:
	case <-time.After(d):
		return
	}
	select {
	case <-done:
	case <-time.After(d):
	}
}

// queueLen is how many lines wait for syslog at most.
const queueLen = 256

type line struct {
	level slog.Level
	text  []byte
	done  chan struct{} // a mark of Flush
}

// queue stands between the log and a sink that may block.
type queue struct{ lines chan line }

func (q *queue) put(level slog.Level, text []byte) {
	select {
	case q.lines <- line{level: level, text: bytes.Clone(text)}:
	default:
	}
}

func (q *queue) drain(sink func(slog.Level, []byte)) {
	for l := range q.lines {
		if l.done != nil {
			close(l.done)
			continue
		}
		sink(l.level, l.text)
	}
}

// Started says that the start is over.
func (l *Log) Started() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stamp = l.stampLater
}

// toSink sends the log somewhere else, or nowhere if sink is nil.
func (l *Log) toSink(sink func(slog.Level, []byte)) {
	if sink == nil {
		sink = func(slog.Level, []byte) {}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sink, l.stampLater = sink, false
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

// Write takes a line from a handler of package slog.
func (l *Log) Write(line []byte) (int, error) {
	l.sink(l.last, line)
	return len(line), nil
}

// handler returns the handler for the format.
func (l *Log) handler() slog.Handler {
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
	logs *Log
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

// plain is the handler for people: "name: message key=value".
type plain struct {
	logs   *Log
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
	b.WriteString(h.logs.name + ": ")
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
