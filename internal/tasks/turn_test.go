package tasks

import (
	"context"
	"errors"
	"testing"
)

// TestTurn: one has it, the next one waits for as long as he may.
func TestTurn(t *testing.T) {
	x := NewTurn()
	if err := x.Take(t.Context()); err != nil || x.TryTake() {
		t.Fatalf("%v, or two have it", err)
	}
	ended, end := context.WithCancelCause(t.Context())
	why := errors.New("why")
	end(why)
	if err := x.Take(ended); err != why {
		t.Errorf("%v", err)
	}
	taken := make(chan error)
	go func() { taken <- x.Take(t.Context()) }()
	x.Give()
	if err := <-taken; err != nil {
		t.Error(err)
	}
	x.Give()
	if err := x.Take(ended); err != nil { // it is free
		t.Error(err)
	}
	x.Give()
	if !x.TryTake() {
		t.Error("it is free, and not to be had")
	}
}
