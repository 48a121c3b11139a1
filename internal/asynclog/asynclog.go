// Package asynclog logs without waiting long for whoever takes the log.
//
// What takes a log can hang: a terminal that was stopped, syslog or systemd's journal
// when their disk is full or dead. It may even wait for a device that only this process
// can bring back. So lines wait in a queue. Where it is full, whoever logs waits a moment
// for room: what is only slow loses nothing. If there is none, lines are dropped and counted,
// while the work goes on, until half of the queue has been taken.
package asynclog

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"nbd.example/nbd/internal/tasks"
)

// bound is how many bytes may wait for whoever takes the log, with one line more.
const bound = 1 << 20

// lull is how long a line waits for others. A server that many clients come to logs
// two lines for each, and to wake somebody for every single one costs more than to
// serve the client.
const lull = 10 * time.Millisecond

// moment is how long whoever logs waits for room.
const moment = 250 * time.Millisecond

// Queue passes lines on, in their order, from a goroutine of its own. Its methods may be
// called concurrently.
type Queue struct {
	tasks  *tasks.Queue
	report func(lines int64)
	moment time.Duration

	mu      sync.Mutex
	cond    sync.Cond // of bytes, stalled and closed
	bytes   int       // of lines that wait
	stalled bool      // nobody waits for room
	closed  bool
	dropped int64 // lines, since the last report
}

// NewQueue returns a queue. It calls report with the number of lines that were dropped,
// where they are missing; that may wait, and must not use the queue. It must be closed.
func NewQueue(report func(lines int64)) *Queue {
	q := &Queue{tasks: tasks.NewLazy(lull), report: report, moment: moment}
	q.cond.L = &q.mu
	return q
}

// Do has pass called some time, which passes on a line of that many bytes, or drops the
// line. It waits a moment for room: the caller should hold no lock that anybody needs for
// more than logging.
func (q *Queue) Do(bytes int, pass func()) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.room() {
		q.dropped++
		return
	}
	q.bytes += bytes
	q.tasks.Do(nil, func() {
		pass()
		q.taken(bytes)
	})
	if q.bytes > bound/2 {
		q.tasks.Hurry()
	}
}

// Hurry has the lines passed on that wait for others to come.
func (q *Queue) Hurry() { q.tasks.Hurry() }

// room waits for room, and reports whether there is some. The caller holds q.mu, which is
// given up for a while.
func (q *Queue) room() bool {
	full := func() bool { return q.bytes >= bound && !q.stalled && !q.closed }
	if full() {
		late := false
		t := time.AfterFunc(q.moment, func() {
			q.mu.Lock()
			defer q.mu.Unlock()
			late = true
			q.cond.Broadcast()
		})
		defer t.Stop()
		for full() && !late {
			q.cond.Wait()
		}
		if full() {
			q.stalled = true
			q.cond.Broadcast()
		}
	}
	return !q.stalled && !q.closed
}

// taken gives back the room of a line.
func (q *Queue) taken(bytes int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.bytes -= bytes
	if q.stalled && q.bytes <= bound/2 {
		q.stalled = false
		q.tell()
	}
	q.cond.Broadcast()
}

// tell has the dropped lines reported behind all that waits. The caller holds q.mu.
func (q *Queue) tell() {
	if n := q.dropped; n > 0 {
		q.dropped = 0
		q.tasks.Do(nil, func() { q.report(n) })
	}
}

// Flush waits until all lines are passed on that came before, for as long as ctx allows.
func (q *Queue) Flush(ctx context.Context) error {
	q.mu.Lock()
	q.tell()
	q.mu.Unlock()
	return q.tasks.Flush(ctx)
}

// Close is Flush at the end: lines that come later are dropped.
func (q *Queue) Close(ctx context.Context) error {
	q.mu.Lock()
	q.tell()
	q.closed = true
	q.cond.Broadcast()
	q.mu.Unlock()
	return q.tasks.Close(ctx)
}

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

// Flush waits until all records are passed on that came before, for as long as ctx allows.
// If the next handler has a method Flush, because records wait there, too, it is called then;
// how long that takes is its affair.
func (h *Handler) Flush(ctx context.Context) error {
	err := h.queue.Flush(ctx)
	if next, ok := h.next.(interface{ Flush() }); ok {
		next.Flush()
	}
	return err
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
	r = r.Clone()
	h.queue.Do(sizeOf(&r), func() { h.next.Handle(context.Background(), r) })
	if r.Level >= slog.LevelWarn {
		h.queue.Hurry()
	}
	return nil
}

// Sizes of what is not looked into, in bytes.
const (
	recordSize = 256 // of a record, and what it takes to keep it
	attrSize   = 64
)

// sizeOf is about how much memory a record takes, in bytes.
func sizeOf(r *slog.Record) int {
	n := recordSize + len(r.Message)
	r.Attrs(func(a slog.Attr) bool {
		n += attrSize + len(a.Key)
		if a.Value.Kind() == slog.KindString {
			n += len(a.Value.String())
		}
		return true
	})
	return n
}

// WithAttrs is that of [slog.Handler].
func (h *Handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &Handler{next: h.next.WithAttrs(attrs), queue: h.queue}
}

// WithGroup is that of [slog.Handler].
func (h *Handler) WithGroup(name string) slog.Handler {
	return &Handler{next: h.next.WithGroup(name), queue: h.queue}
}
