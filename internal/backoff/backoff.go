// Package backoff says how long to wait between attempts.
package backoff

import (
	"math/rand/v2"
	"time"
)

// What New takes for 0.
const (
	defaultFirst = 100 * time.Millisecond
	defaultMost  = 5 * time.Second
)

// Backoff draws the times between attempts: a first one, then twice as long each time up
// to a limit, each from between half of it and all of it. It is for one goroutine at a time.
type Backoff struct {
	first, most time.Duration
	step        time.Duration  // the longest that the next wait can be
	random      func() float64 // from 0 up to 1
}

// New makes one that begins with first, 0 for 100 ms, and ends with most, 0 for 5 s.
func New(first, most time.Duration) *Backoff {
	if first <= 0 {
		first = defaultFirst
	}
	if most <= 0 {
		most = defaultMost
	}
	return &Backoff{first: min(first, most), most: most, random: rand.Float64}
}

// Next returns how long to wait before the next attempt.
func (b *Backoff) Next() time.Duration {
	switch {
	case b.step == 0:
		b.step = b.first
	case b.step > b.most/2:
		b.step = b.most
	default:
		b.step *= 2
	}
	half := b.step / 2
	return half + time.Duration(b.random()*float64(b.step-half))
}

// Reset begins anew.
func (b *Backoff) Reset() { b.step = 0 }
