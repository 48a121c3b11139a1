package memlock

import (
	"errors"
	"runtime"
	"testing"
)

func TestOptions(t *testing.T) {
	for _, o := range []Options{{Heap: -1}, {OOMScore: -1001}, {OOMScore: 1001}} {
		list, err := Lock(o)
		if err == nil || list != nil {
			t.Errorf("Lock(%+v) = %v, %v", o, list, err)
		}
	}
	if runtime.GOOS != "linux" {
		if _, err := Lock(Options{}); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("Lock here: %v", err)
		}
	}
}

func TestWarning(t *testing.T) {
	w := Warning{What: "lock memory", Advice: "do this"}
	if got := w.String(); got != "lock memory; do this" {
		t.Error(got)
	}
	w.Err = errors.New("why")
	if got := w.String(); got != "lock memory: why; do this" {
		t.Error(got)
	}
}
