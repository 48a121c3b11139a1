package block

import (
	"context"
	"sync"
	"testing"
)

// slowFlush counts flushes, and lets the test say when each may end.
type slowFlush struct {
	Backend
	begun chan struct{}
	end   chan error
}

func (s *slowFlush) Caps() Caps { return Caps{Size: 512} }

func (s *slowFlush) Flush(context.Context) error {
	s.begun <- struct{}{}
	return <-s.end
}

// TestFlushesShare begins one flush, then ten more: the ten must not be
// answered by the first, which may have begun before their writes, and they
// need one more between them.
func TestFlushesShare(t *testing.T) {
	s := &slowFlush{begun: make(chan struct{}), end: make(chan error)}
	d, err := New(s)
	if err != nil {
		t.Fatal(err)
	}
	var first, rest sync.WaitGroup
	first.Go(func() {
		if err := d.Flush(t.Context()); err != nil {
			t.Error(err)
		}
	})
	<-s.begun
	var answered sync.Map
	var entered sync.WaitGroup
	for i := range 10 {
		entered.Add(1)
		rest.Go(func() {

			entered.Done()

			if err := d.Flush(t.Context()); err != nil {
				t.Error(err)
			}
			answered.Store(i, true)
		})
	}
	entered.Wait()
	s.end <- nil
	first.Wait()
	more := 0
	done := make(chan struct{})
	go func() { rest.Wait(); close(done) }()
	for {
		select {
		case <-s.begun:
			if more == 0 {
				answered.Range(func(any, any) bool { t.Error("answered by a flush that had begun before"); return false })
			}
			more++
			s.end <- nil
			continue
		case <-done:
		}
		break
	}
	if more < 1 || more > 10 {
		t.Errorf("%d more flushes for ten", more)
	}
}
