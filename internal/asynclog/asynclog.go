// Package asynclog logs without ever waiting for whoever takes the log.
package asynclog

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
)

// queued is how many lines may wait for whoever takes the log.
const queued = 256

// Handler is a [slog.Handler] that passes records on from a goroutine of its own. What
// takes the log may itself wait for the device whose connection is dead (a journal on it):
// then lines are dropped, and reconnecting goes on. It may be used concurrently.
type Handler struct {
	next  slog.Handler
	queue *lines
}

// lines is what all handlers made from one share.
type lines struct {
	lines   chan func()
	dropped atomic.Int64
	ended   chan struct{}
	once    sync.Once
	mu      sync.RWMutex
	closed  bool
}

// New returns a handler in front of next. It must be closed.
func New(next slog.Handler) *Handler {
	q := &lines{lines: make(chan func(), queued), ended: make(chan struct{})}
	go q.run(next)
	return &Handler{next: next, queue: q}
}

func (q *lines) run(next slog.Handler) {
	defer close(q.ended)
	for f := range q.lines {
		f()
		if n := q.dropped.Swap(0); n > 0 {
			slog.New(next).Warn("lines of the log were dropped, since they were not taken in time", "lines", n)
		}
	}
}

// Close passes on what waits, for as long as ctx allows. Records that come later are
// dropped.
func (h *Handler) Close(ctx context.Context) {
	h.queue.once.Do(func() {
		h.queue.mu.Lock()
		h.queue.closed = true
		close(h.queue.lines)
		h.queue.mu.Unlock()
	})
	select {
	case <-h.queue.ended:
	case <-ctx.Done():
	}
}

// Enabled is that of [slog.Handler].
func (h *Handler) Enabled(ctx context.Context, l slog.Level) bool {
	return h.next.Enabled(ctx, l)
}

// Handle queues r, or drops it.
func (h *Handler) Handle(_ context.Context, r slog.Record) error {
	q := h.queue
	q.mu.RLock()
	defer q.mu.RUnlock()
	if q.closed {
		return nil
	}
	next := h.next
	select {
	case q.lines <- func() { next.Handle(context.Background(), r) }:
	default:
		q.dropped.Add(1)
	}
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
