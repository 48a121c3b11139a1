// Package announce tells watchers of things that happen, without waiting for them.
package announce

import (
	"context"
	"sync"

	"nbd.example/nbd/kernel"
)

// Board passes on what was posted to those who watch. The zero value is ready. All
// methods may be called concurrently.
type Board struct {
	mu       sync.Mutex
	closed   bool
	over     chan struct{} // closed with the board
	watchers map[*watcher]struct{}
	wg       sync.WaitGroup
}

// watcher holds what was not yet told to one who watches.
type watcher struct {
	news chan struct{} // holds one if there is something in list
	list []kernel.Index
}

// Watch calls f with all that is posted after its return, from a goroutine of its own,
// one call at a time, until ctx ends or the board is closed. It reports whether the
// board is open.
func (b *Board) Watch(ctx context.Context, f func(kernel.Index)) bool {
	w := &watcher{news: make(chan struct{}, 1)}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed {
		return false
	}
	if b.watchers == nil {
		b.watchers, b.over = map[*watcher]struct{}{}, make(chan struct{})
	}
	b.watchers[w] = struct{}{}
	b.wg.Go(func() {
		for b.wait(ctx, w) {
			for _, i := range b.take(w) {
				if ctx.Err() == nil {
					f(i)
				}
			}
		}
		b.mu.Lock()
		defer b.mu.Unlock()
		delete(b.watchers, w)
	})
	return true
}

// wait waits for news, and reports false at the end.
func (b *Board) wait(ctx context.Context, w *watcher) bool {
	select {
	case <-ctx.Done():
		return false
	case <-b.over:
		return false
	case <-w.news:
		return true
	}
}

// take returns the news.
func (b *Board) take(w *watcher) []kernel.Index {
	b.mu.Lock()
	defer b.mu.Unlock()
	list := w.list
	w.list = nil
	return list
}

// Post tells all who watch. It does not wait for them.
func (b *Board) Post(i kernel.Index) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for w := range b.watchers {
		w.list = append(w.list, i)
		select {
		case w.news <- struct{}{}:
		default:
		}
	}
}

// Close ends all watching, and waits for calls that are under way. What was not yet told
// is not told.
func (b *Board) Close() {
	b.mu.Lock()
	if !b.closed && b.over != nil {
		close(b.over)
	}
	b.closed = true
	b.mu.Unlock()
	b.wg.Wait()
}
