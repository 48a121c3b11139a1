// Package asynclog logs without ever waiting for whoever takes the log.
//
// What takes a log can hang: a terminal that was stopped, syslog or systemd's journal
// when their disk is full or dead. It may even wait for a device that only this process
// can bring back. So lines wait in a queue of bounded length, and are dropped and counted
// when it is full, while the work goes on.
package asynclog

import (
	"context"
	"log/slog"
	"sync/atomic"

	"nbd.example/nbd/internal/tasks"
)

// queued is how many lines may wait for whoever takes the log.
const queued = 256

// Queue passes lines on, in their order, from a goroutine of its own. Its methods may be
// called concurrently.
type Queue struct {
	tasks   *tasks.Queue
	dropped atomic.Int64
	report  func(lines int64)
}

// NewQueue returns a queue. It calls report with the number of lines that were dropped,
// once lines are taken again; that may wait, and must not use the queue. It must be closed.
func NewQueue(report func(lines int64)) *Queue {
	return &Queue{tasks: tasks.New(), report: report}
}

// Do has pass called some time, which passes on a line, or drops the line.
func (q *Queue) Do(pass func()) {
	if !q.tasks.TryDo(func() { pass(); q.tell() }, queued) {
		q.dropped.Add(1)
	}
}

func (q *Queue) tell() {
	if n := q.dropped.Swap(0); n > 0 {
		q.report(n)
	}
}

// Flush waits until all lines are passed on that came before, for as long as ctx allows.
func (q *Queue) Flush(ctx context.Context) error { return q.tasks.Flush(ctx) }

// Close is Flush at the end: lines that come later are dropped.
func (q *Queue) Close(ctx context.Context) error { return q.tasks.Close(ctx) }

// Report says in log that lines were dropped.
func Report(log *slog.Logger, lines int64) {
	log.Warn("lines of the log were dropped, since they were not taken in time", "lines", lines)
}

// Handler is a [slog.Handler] that passes records on through a Queue. It may be used
// concurrently.
type Handler struct {
	next  slog.Handler
	queue *Queue // of all handlers that were made from one
}

// New returns a handler in front of next. It must be closed.
func New(next slog.Handler) *Handler {
	log := slog.New(next)
	return &Handler{next: next, queue: NewQueue(func(n int64) { Report(log, n) })}
}

// Close passes on what waits, for as long as ctx allows. Records that come later are
// dropped.
func (h *Handler) Close(ctx context.Context) error { return h.queue.Close(ctx) }

// Enabled is that of [slog.Handler].
func (h *Handler) Enabled(ctx context.Context, l slog.Level) bool {
	return h.next.Enabled(ctx, l)
}

// Handle queues r, or drops it.
func (h *Handler) Handle(_ context.Context, r slog.Record) error {
	h.queue.Do(func() { h.next.Handle(context.Background(), r) })
	return nil
}

// WithAttrs is that of [slog.Handler].
func (h *Handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &Handler{next: h.next.WithAttrs(attrs), queue: h.queue}
}

// WithGroup is that of [slog.Handler].
func (h *Handler) WithGroup(name string) slog.Handler {
	return &Handler{next: h.next.WithGroup(name), queue: h.queue}
}
