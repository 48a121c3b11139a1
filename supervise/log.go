package supervise

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
)

// logQueue is how many lines may wait for whoever takes the log.
const logQueue = 256

// asyncHandler passes records on from a goroutine of its own. What takes the log may
// itself wait for the device whose connection is dead (a journal on it): then lines are
// dropped, and reconnecting goes on.
type asyncHandler struct {
	next  slog.Handler
	queue *logLines
}

// logLines is what all handlers made from one share.
type logLines struct {
	lines   chan func()
	dropped atomic.Int64
	ended   chan struct{}
	once    sync.Once
	mu      sync.RWMutex
	closed  bool
}

// newAsyncHandler returns a handler in front of next. close ends it.
func newAsyncHandler(next slog.Handler) *asyncHandler {
	q := &logLines{lines: make(chan func(), logQueue), ended: make(chan struct{})}
	go q.run(next)
	return &asyncHandler{next: next, queue: q}
}

func (q *logLines) run(next slog.Handler) {
	defer close(q.ended)
	for f := range q.lines {
		f()
		if n := q.dropped.Swap(0); n > 0 {
			slog.New(next).Warn("lines of the log were dropped, since they were not taken in time", "lines", n)
		}
	}
}

// close passes on what waits, for as long as ctx allows.
func (h *asyncHandler) close(ctx context.Context) {
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
func (h *asyncHandler) Enabled(ctx context.Context, l slog.Level) bool {
	return h.next.Enabled(ctx, l)
}

// Handle queues r, or drops it.
func (h *asyncHandler) Handle(_ context.Context, r slog.Record) error {
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
func (h *asyncHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &asyncHandler{next: h.next.WithAttrs(attrs), queue: h.queue}
}

// WithGroup is that of [slog.Handler].
func (h *asyncHandler) WithGroup(name string) slog.Handler {
	return &asyncHandler{next: h.next.WithGroup(name), queue: h.queue}
}
