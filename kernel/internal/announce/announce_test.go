package announce

import (
	"context"
	"slices"
	"testing"

	"nbd.example/nbd/kernel"
)

func TestBoard(t *testing.T) {
	var b Board
	b.Post(1) // to nobody
	got := make(chan kernel.Index, 10)
	ctx, cancel := context.WithCancel(t.Context())
	hold := make(chan struct{})
	if !b.Watch(ctx, func(i kernel.Index) { <-hold; got <- i }) {
		t.Fatal("the board is closed")
	}
	for i := range kernel.Index(5) {
		b.Post(i) // does not wait
	}
	close(hold)
	var list []kernel.Index
	for range 5 {
		list = append(list, <-got)
	}
	if !slices.Equal(list, []kernel.Index{0, 1, 2, 3, 4}) {
		t.Errorf("told %v", list)
	}
	cancel()
	b.Close()
	b.Post(7)
	b.Close()
	if b.Watch(t.Context(), func(kernel.Index) {}) {
		t.Error("a closed board is watched")
	}
	if len(got) != 0 {
		t.Errorf("told %d after the end", <-got)
	}
}
