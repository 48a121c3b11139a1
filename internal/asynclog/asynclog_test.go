package asynclog

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"testing"
)

type writer func([]byte) (int, error)

func (w writer) Write(b []byte) (int, error) { return w(b) }

// A log that is not taken delays nobody.
func TestAsyncLog(t *testing.T) {
	gate := make(chan struct{})
	var out bytes.Buffer
	h := New(slog.NewTextHandler(writer(func(b []byte) (int, error) {
		<-gate
		return out.Write(b)
	}), nil))
	log := slog.New(h).With("a", 1).WithGroup("g")
	for i := range 3 * queued {
		log.Info("line", "i", i)
	}
	close(gate)
	h.Close(context.Background())
	log.Info("too late")
	if got := out.String(); strings.Count(got, "msg=line a=1 g.i=") < queued || !strings.Contains(got, "were dropped") || strings.Contains(got, "too late") {
		t.Error(got)
	}
}
