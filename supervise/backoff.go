package supervise

import (
	"math/rand/v2"
	"time"
)

// Defaults of Backoff.
const (
	defaultFirst = 100 * time.Millisecond
	defaultMost  = 5 * time.Second
)

// steady is how long a device must have had all its connections for the next attempt
// to be made at once again: a server that dies of each connection is not hammered.
const steady = time.Second

// backoff draws the times between attempts. It is for one goroutine at a time.
type backoff struct {
	first, most time.Duration
	step        time.Duration  // the longest that the next wait can be
	random      func() float64 // from 0 up to 1
}

func newBackoff(b Backoff) *backoff {
	if b.First <= 0 {
		b.First = defaultFirst
	}
	if b.Most <= 0 {
		b.Most = defaultMost
	}
	return &backoff{first: min(b.First, b.Most), most: b.Most, random: rand.Float64}
}

// next returns how long to wait before the next attempt.
func (b *backoff) next() time.Duration {
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

// reset begins anew.
func (b *backoff) reset() { b.step = 0 }
