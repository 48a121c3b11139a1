// Package proglog is how a program of this module says what happens: to the person
// who started it, to systemd's journal, to the event log of Windows, or to syslog once
// it is in the background.
//
// Lines for people begin with the program's name, as those of every tool do, and need
// no time, which the reader knows. Where standard error is a file that somebody reads
// later they get one, once the start is over; the journal gets priorities in place of
// it. Text from others cannot harm a terminal: what is not printable is quoted.
//
// Until the start is over a line is written when the call returns. Then nobody waits long
// for whoever takes the log, see package asynclog: warnings and errors are passed on at
// once, other lines wait some milliseconds for more. The program calls [Log.Close] at its
// end, so that the last lines are not lost.
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

	"nbd.example/nbd/internal/asynclog"
)

// Sink takes lines, each with its end of line. It must not keep them. It may be slow.
type Sink func(level slog.Level, line []byte)

// Config says what the log looks like. Name is needed, and one of Stderr and Sink.
type Config struct {
	Name   string // the program's, without colon
	Stderr *os.File
	Format string // "text", which "" means as well, "logfmt" or "json"
	Level  string // "debug", "info", "warn" or "error"; "" means info
	// Journal is the variable JOURNAL_STREAM of the environment.
	Journal string
	// Sink takes the log in place of Stderr.
	Sink Sink
	// Kernel lets the kernel's log stand in for syslog: in an initramfs there is no other.
	Kernel bool
}

// Log decides what log lines look like and where they go. That changes once, when the
// program lets go of the terminal. Its methods may be called concurrently.
type Log struct {
	name   string
	kernel bool
	level  slog.Level
	root   slog.Handler // writes to the buffer

	mu     sync.Mutex
	buffer bytes.Buffer // of the line that is being written
	sink   Sink
	stamp  bool // lines need a time
	// stampLater says that they will, once the start is over: who starts a program
	// and reads what went wrong needs none.
	stampLater bool
	queue      *asynclog.Queue // nil as long as lines are written at once
	holds      bool            // lines that are no warnings wait in held
	held       []line
}

// line is a line that waits.
type line struct {
	level slog.Level
	text  []byte
}

// mostHeld bounds how many lines wait.
const mostHeld = 100

// New returns a log to standard error, or to another sink.
func New(c Config) *Log {
	l := &Log{name: c.Name, kernel: c.Kernel, level: slog.LevelInfo}
	switch c.Level {
	case "debug":
		l.level = slog.LevelDebug
	case "warn":
		l.level = slog.LevelWarn
	case "error":
		l.level = slog.LevelError
	}
	o := &slog.HandlerOptions{Level: l.level}
	switch c.Format {
	case "json":
		l.root = slog.NewJSONHandler(&l.buffer, o)
	case "logfmt":
		l.root = slog.NewTextHandler(&l.buffer, o)
	default:
		l.root = &plain{logs: l}
	}
	switch {
	case c.Sink != nil:
		l.sink = c.Sink
	case isJournal(c.Stderr, c.Journal):
		l.sink = journal(c.Stderr)
	default:
		l.sink = func(_ slog.Level, line []byte) { c.Stderr.Write(line) }
		l.stampLater = !isTerminal(c.Stderr)
	}
	return l
}

// Logger returns a logger that writes to l.
func (l *Log) Logger() *slog.Logger { return slog.New(&locked{logs: l, next: l.root}) }

// ToSyslog sends the log to the system's log from now on, and reports whether there is
// one. If there is none, the log stays where it is.
func (l *Log) ToSyslog() bool {
	sink := syslogSink(l.name)
	if sink == nil && l.kernel {
		sink = kernelSink()
	}
	if sink == nil {
		return false
	}
	defer l.release()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sink, l.stampLater = sink, false
	l.decouple()
	return true
}

// Hold has lines that are no warnings wait until it is known where the log goes: who goes to
// the background says on the terminal why he could not, and in the system's log what he does.
func (l *Log) Hold() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.holds = true
}

// release writes the lines that wait.
func (l *Log) release() {
	l.mu.Lock()
	held, sink, queue := l.held, l.sink, l.queue
	l.holds, l.held = false, nil
	l.mu.Unlock()
	for _, h := range held {
		if queue == nil {
			sink(h.level, h.text)
		} else {
			queue.Do(lineSize+len(h.text), func() { sink(h.level, h.text) })
		}
	}
}

// Started says that the start is over.
func (l *Log) Started() {
	defer l.release()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stamp = l.stampLater
	l.decouple()
}

// decouple has lines wait in a queue from now on, under the mutex.
func (l *Log) decouple() {
	if l.queue == nil {
		l.queue = asynclog.NewQueue(l.report)
	}
}

// report says how many lines were dropped. The queue calls it: it writes itself.
func (l *Log) report(lines int64) {
	write := func() {}
	h := &locked{logs: l, next: l.root, pass: func(w func()) { write = w }}
	asynclog.Report(slog.New(h), lines)
	write()
}

// patience is how long the last lines may take: who ends a program whose log hangs gets
// an end.
const patience = 5 * time.Second

// Flush waits until all lines are written, but not for ever.
func (l *Log) Flush() { l.wait((*asynclog.Queue).Flush) }

// Close is Flush at the end of the program: lines that come later may be lost.
func (l *Log) Close() { l.wait((*asynclog.Queue).Close) }

func (l *Log) wait(do func(*asynclog.Queue, context.Context) error) {
	l.release()
	l.mu.Lock()
	q := l.queue
	l.mu.Unlock()
	if q == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	do(q, ctx)
}

// journal writes lines as systemd's journal wants them: with their priority.
func journal(w io.Writer) Sink {
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

// locked lets one record through at a time.
type locked struct {
	logs *Log
	next slog.Handler
	// pass is given what writes a line. Nil: the queue is, if there is one.
	pass func(write func())
}

// Enabled compares with the level that was asked for.
func (h *locked) Enabled(_ context.Context, level slog.Level) bool { return level >= h.logs.level }

// Handle writes one record.
func (h *locked) Handle(ctx context.Context, r slog.Record) error {
	queue, size, write, err := h.format(ctx, r)
	switch {
	case write == nil:
	case h.pass != nil:
		h.pass(write)
	default:
		queue.Do(size, write) // not under the mutex: it may wait
		if r.Level >= slog.LevelWarn {
			queue.Hurry()
		}
	}
	return err
}

// lineSize is about what it takes to keep a line, without its text, in bytes.
const lineSize = 128

// format makes a line, and returns what writes it, and its size in bytes. There is nothing
// left to write if the line was written at once.
func (h *locked) format(ctx context.Context, r slog.Record) (queue *asynclog.Queue, size int, write func(), err error) {
	l := h.logs
	l.mu.Lock()
	defer l.mu.Unlock()
	l.buffer.Reset()
	if err := h.next.Handle(ctx, r); err != nil {
		return nil, 0, nil, err
	}
	if l.holds && r.Level < slog.LevelWarn && len(l.held) < mostHeld {
		l.held = append(l.held, line{r.Level, bytes.Clone(l.buffer.Bytes())})
		return nil, 0, nil, nil
	}
	if h.pass == nil && l.queue == nil {
		l.sink(r.Level, l.buffer.Bytes())
		return nil, 0, nil, nil
	}
	sink, text := l.sink, bytes.Clone(l.buffer.Bytes())
	return l.queue, lineSize + len(text), func() { sink(r.Level, text) }, nil
}

// Flush waits until all lines are written. Who has only a handler finds it there.
func (h *locked) Flush() { h.logs.Flush() }

// WithAttrs returns a handler that adds attributes.
func (h *locked) WithAttrs(a []slog.Attr) slog.Handler {
	return &locked{h.logs, h.next.WithAttrs(a), h.pass}
}

// WithGroup returns a handler that puts what follows in a group.
func (h *locked) WithGroup(name string) slog.Handler {
	return &locked{h.logs, h.next.WithGroup(name), h.pass}
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
	b := &h.logs.buffer
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
		appendAttr(b, h.prefix, a)
		return true
	})
	b.WriteByte('\n')
	return nil
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
