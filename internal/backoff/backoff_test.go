package backoff

import (
	"testing"
	"time"
)

func TestBackoff(t *testing.T) {
	b := New(100*time.Millisecond, time.Second)
	for _, random := range []float64{0, 0.999999} {
		b.Reset()
		b.random = func() float64 { return random }
		for i, longest := range []int{100, 200, 400, 800, 1000, 1000} {
			got, most := b.Next(), time.Duration(longest)*time.Millisecond
			if random == 0 && got != most/2 || random > 0 && (got > most || got < most*99/100) {
				t.Errorf("wait %d is %v of at most %v with %v", i, got, most, random)
			}
		}
	}
	if b := New(0, 0); b.first != defaultFirst || b.most != defaultMost {
		t.Errorf("%+v", b)
	}
	if b := New(time.Hour, time.Second); b.Next() > time.Second {
		t.Errorf("%+v", b)
	}
}
