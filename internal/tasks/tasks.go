// Package tasks is about waiting: a queue for what must not be waited for, and a turn that is
// not waited for longer than one may.
package tasks

import (
	"context"
	"sync"
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
}

type task struct {
	key any
	f   func()
}

// New starts one. It must be closed.
func New() *Queue {
	w := &Queue{wake: make(chan struct{}, 1), ended: make(chan struct{})}
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
	w.signal()
}

func (w *Queue) signal() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// Flush waits until all is done that was to be done before.
func (w *Queue) Flush(ctx context.Context) error {
	done := make(chan struct{})
	w.Do(nil, func() { close(done) })
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
	w.signal()
	w.mu.Unlock()
	select {
	case <-w.ended:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

func (w *Queue) run() {
	defer close(w.ended)
	for range w.wake {
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
