package tasks

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"
)

func TestQueue(t *testing.T) {
	w := New()
	gate, begun := make(chan struct{}), make(chan struct{})
	var done []string
	add := func(s string) func() { return func() { done = append(done, s) } }
	w.Do(nil, func() { close(begun); <-gate })
	<-begun
	w.Do("a", add("old"))
	w.Do("b", add("b"))
	w.Do("a", add("new"))
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := w.Flush(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("a flush of what does not end: %v", err)
	}
	close(gate)
	if err := w.Flush(context.Background()); err != nil {
		t.Error(err)
	}
	if err := w.Close(context.Background()); err != nil || !slices.Equal(done, []string{"new", "b"}) {
		t.Errorf("%v, %v", done, err)
	}
	w.Do(nil, add("late"))
	if err := w.Flush(context.Background()); err != nil || len(done) != 2 {
		t.Errorf("%v, %v", done, err)
	}
}

// A lazy queue does nothing until somebody hurries it, and nobody waits for it at the end.
func TestLazy(t *testing.T) {
	w := NewLazy(time.Hour)
	did := make(chan string, 3)
	w.Do(nil, func() { did <- "first" })
	w.Do(nil, func() { did <- "second" })
	select {
	case s := <-did:
		t.Errorf("the %s did not wait", s)
	default:
	}
	w.Hurry()
	if a, b := <-did, <-did; a != "first" || b != "second" {
		t.Errorf("%s, %s", a, b)
	}
	w.Do(nil, func() { did <- "third" })
	if err := w.Flush(context.Background()); err != nil || len(did) != 1 {
		t.Errorf("flush: %v, %d done", err, len(did))
	}
	w.Do(nil, func() { did <- "last" })
	if err := w.Close(context.Background()); err != nil || len(did) != 2 {
		t.Errorf("close: %v, %d done", err, len(did))
	}
}
