package supervise

import (
	"context"
	"sync"
)

// worker does what must not be waited for: it writes files, and passes copies of sockets
// to whoever keeps them. A task that was not begun yet is replaced by a newer one of the
// same key.
type worker struct {
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

func newWorker() *worker {
	w := &worker{wake: make(chan struct{}, 1), ended: make(chan struct{})}
	go w.run()
	return w
}

// do has f done some time. A nil key replaces nothing.
func (w *worker) do(key any, f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return
	}
	for i := range w.tasks {
		if key != nil && w.tasks[i].key == key {
			w.tasks[i].f = f
			return
		}
	}
	w.tasks = append(w.tasks, task{key, f})
	w.signal()
}

func (w *worker) signal() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// flush waits until all is done that was to be done before.
func (w *worker) flush(ctx context.Context) error {
	done := make(chan struct{})
	w.do(nil, func() { close(done) })
	select {
	case <-done:
		return nil
	case <-w.ended:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// close lets the worker end after what is to be done, and waits for it as long as ctx
// allows.
func (w *worker) close(ctx context.Context) error {
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

func (w *worker) run() {
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
			w.tasks = w.tasks[1:]
			w.mu.Unlock()
			t.f()
		}
	}
}
