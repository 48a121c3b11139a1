package asynclog

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

type writer func([]byte) (int, error)

func (w writer) Write(b []byte) (int, error) { return w(b) }

// A log that is not taken delays nobody for long.
func TestAsyncLog(t *testing.T) {
	gate := make(chan struct{})
	var out bytes.Buffer
	h := New(slog.NewTextHandler(writer(func(b []byte) (int, error) {
		<-gate
		return out.Write(b)
	}), nil))
	h.queue.moment = time.Millisecond
	log := slog.New(h).With("a", 1).WithGroup("g")
	const n = 3 * bound / recordSize
	for i := range n {
		log.Info("line", "i", i, "text", strings.Repeat("x", i%7))
	}
	close(gate)
	h.Close(context.Background())
	log.Info("too late")
	got := out.String()
	if k := strings.Count(got, "msg=line a=1 g.i="); k < n/6 || k > n/3 {
		t.Errorf("%d of %d lines came through", k, n)
	}
	if !strings.Contains(got, "were dropped") || strings.Contains(got, "too late") {
		t.Error(got[max(0, len(got)-1000):])
	}
}

// limit bounds waits for what must happen. Nothing is measured by it.
const limit = 60 * time.Second

func await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(limit); !ok(); runtime.Gosched() {
		if time.Now().After(end) {
			t.Fatalf("waiting too long until %s", what)
		}
	}
}

// under looks at a queue.
func under(q *Queue, look func() bool) func() bool {
	return func() bool {
		q.mu.Lock()
		defer q.mu.Unlock()
		return look()
	}
}

const lineLength = 1 << 10 // of the lines below, in bytes

// TestSlow: lines are not lost to somebody who only takes a while.
func TestSlow(t *testing.T) {
	q := NewQueue(func(n int64) { t.Errorf("%d lines were dropped", n) })
	q.moment = limit
	const n = 4 * bound / lineLength
	var begun atomic.Int64
	through := 0
	for i := range n {
		begun.Add(1)
		q.Do(lineLength, func() {
			if i == 0 {
				await(t, "more is logged than there is room for", func() bool { return begun.Load() > bound/lineLength })
			}
			through++
		})
	}
	q.Close(t.Context())
	if through != n {
		t.Errorf("%d of %d lines came through", through, n)
	}
}

// stuck returns a queue that nobody takes anything from until the gate is opened, that is
// full, and that has dropped so many lines; and what was passed on.
func stuck(t *testing.T, dropped int) (q *Queue, gate chan struct{}, got *[]string) {
	gate, got = make(chan struct{}), new([]string)
	q = NewQueue(func(n int64) { *got = append(*got, fmt.Sprint(n, " dropped")) })
	q.moment = time.Millisecond
	for range bound/lineLength + dropped {
		q.Do(lineLength, func() { <-gate; *got = append(*got, "line") })
		if under(q, func() bool { return q.stalled })() {
			q.moment = limit // nobody must wait once more
		}
	}
	return q, gate, got
}

// lines is what must have come through stuck.
func lines(more ...string) []string {
	return append(slices.Repeat([]string{"line"}, bound/lineLength), more...)
}

// TestStuck: whoever logs waits once; what was dropped is reported where it is missing.
func TestStuck(t *testing.T) {
	q, gate, got := stuck(t, 10)
	for range bound / lineLength / 2 {
		gate <- struct{}{}
	}
	await(t, "half of the lines are taken", under(q, func() bool { return !q.stalled }))
	q.Do(1, func() { *got = append(*got, "later") })
	close(gate)
	q.Close(t.Context())
	if !slices.Equal(*got, lines("10 dropped", "later")) {
		t.Errorf("%d lines came through, and at the end %q", len(*got), (*got)[len(*got)-2:])
	}
}

// TestFlushTells, and so does Close: of what was dropped until then.
func TestFlushTells(t *testing.T) {
	for name, do := range map[string]func(*Queue, context.Context) error{"Flush": (*Queue).Flush, "Close": (*Queue).Close} {
		q, gate, got := stuck(t, 7)
		gone, cancel := context.WithCancel(t.Context())
		cancel()
		if err := do(q, gone); err == nil {
			t.Errorf("%s: the lines were taken", name)
		}
		close(gate)
		q.Close(t.Context())
		if !slices.Equal(*got, lines("7 dropped")) {
			t.Errorf("%s: %d lines came through, and at the end %q", name, len(*got), (*got)[len(*got)-1])
		}
	}
}

// TestWaitersEnd: who waits for room is let go at the end.
func TestWaitersEnd(t *testing.T) {
	gate := make(chan struct{})
	q := NewQueue(func(int64) {})
	q.moment = time.Hour
	q.Do(bound, func() { <-gate })
	done := make(chan struct{})
	go func() {
		defer close(done)
		q.Do(1, func() { t.Error("a line of after the end was passed on") })
	}()
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	q.Close(gone)
	<-done
	close(gate)
	q.Close(t.Context())
}
