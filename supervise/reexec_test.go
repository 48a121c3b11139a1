package supervise

import (
	"errors"
	"log/slog"
	"os"
	"slices"
	"sync"
	"testing"
)

// flushed is a handler that notes what it gets, and that it is asked to Flush.
type flushed struct {
	slog.Handler
	mu   *sync.Mutex
	list *[]string
}

func (f flushed) Write(b []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	*f.list = append(*f.list, string(b))
	return len(b), nil
}

func (f flushed) Flush() { f.Write([]byte("flush")) }

// All that was logged is passed on before the process is replaced.
func TestReexecLog(t *testing.T) {
	r := newRig(t)
	f := flushed{mu: new(sync.Mutex), list: new([]string)}
	f.Handler = slog.NewTextHandler(f, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key != slog.MessageKey {
			return slog.Attr{}
		}
		return a
	}})
	r.cfg.Log = slog.New(f)
	s := r.supervisor()
	const lines = 1000
	for range lines {
		s.log.Info("line")
	}
	if err := s.Reexec("/nonexistent", []string{"x"}, os.Environ()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v", err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if got := *f.list; len(got) == 0 || got[len(got)-1] != "flush" || !slices.Equal(got[:len(got)-1], slices.Repeat([]string{"msg=line\n"}, lines)) {
		t.Errorf("%d lines were passed on, and then %q", len(got), got[max(0, len(got)-2):])
	}
}
