package tasks

import (
	"context"
	"errors"
	"slices"
	"testing"
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
