// Package tasks is about waiting: a queue for what must not be waited for, and a turn that is
// not waited for longer than one may.
package tasks

import (
	"context"
	"sync"
	"time"
)

// Queue is a goroutine that does one task after the other: writes files, for example. A
// task that was not begun yet is replaced by a newer one of the same key. Its methods may
// be called concurrently.
type Queue struct {
	mu     sync.Mutex
	tasks  []task
	wake   chan struct{} // holds one if there are tasks, or the end
	closed bool
	ended  chan struct{}
	lull   time.Duration // how long the first task waits for others
	hurry  chan struct{} // holds one if it should not
}

type task struct {
	key any
	f   func()
}

// New starts one. It must be closed.
func New() *Queue { return NewLazy(0) }

// NewLazy is New for small tasks that better come in batches: the first one waits for
// others for so long, or until somebody calls Hurry, Flush or Close.
func NewLazy(lull time.Duration) *Queue {
	w := &Queue{wake: make(chan struct{}, 1), ended: make(chan struct{}), lull: lull, hurry: make(chan struct{}, 1)}
	go w.run()
	return w
}

// Do has f done some time. A nil key replaces nothing.
func (w *Queue) Do(key any, f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return
	}
	if key != nil {
		for i := range w.tasks {
			if w.tasks[i].key == key {
				w.tasks[i].f = f
				return
			}
		}
	}
	w.tasks = append(w.tasks, task{key, f})
	signal(w.wake)
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Hurry ends the wait for more tasks.
func (w *Queue) Hurry() { signal(w.hurry) }

// Flush waits until all is done that was to be done before.
func (w *Queue) Flush(ctx context.Context) error {
	done := make(chan struct{})
	w.Do(nil, func() { close(done) })
	w.Hurry()
	select {
	case <-done:
		return nil
	case <-w.ended:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Close lets it end after what is to be done, and waits for it as long as ctx allows.
func (w *Queue) Close(ctx context.Context) error {
	w.mu.Lock()
	w.closed = true
	signal(w.wake)
	w.mu.Unlock()
	w.Hurry()
	select {
	case <-w.ended:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// linger waits for more tasks. A hurry that is left over from before does no harm.
func (w *Queue) linger() {
	if w.lull <= 0 {
		return
	}
	t := time.NewTimer(w.lull)
	defer t.Stop()
	select {
	case <-t.C:
	case <-w.hurry:
	}
}

func (w *Queue) run() {
	defer close(w.ended)
	for range w.wake {
		w.linger()
		for {
			w.mu.Lock()
			if len(w.tasks) == 0 {
				closed := w.closed
				w.mu.Unlock()
				if closed {
					return
				}
				break
			}
			t := w.tasks[0]
			w.tasks[0] = task{}
			w.tasks = w.tasks[1:]
			w.mu.Unlock()
			t.f()
		}
	}
}
