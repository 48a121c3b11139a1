package server

import (
	"context"
	"errors"
	"fmt"
	"time"

	"nbd.example/nbd/transmission"
)

// errIdle ends a connection that was idle for longer than its export allows.
var errIdle = errors.New("the client was idle for too long")

// watchIdle returns a context that ends, besides with ctx, when the connection
// that live shows has asked for nothing, and waits for nothing, for limit. The
// caller must call stop.
func watchIdle(ctx context.Context, limit time.Duration, live *transmission.Live) (_ context.Context, stop func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	// Four looks in each limit: a connection ends between limit and 5/4 of it.
	tick := time.NewTicker(max(limit/4, time.Millisecond))
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer tick.Stop()
		seen, since := live.Stats().Requests, time.Now()
		for {
			select {
			case <-ctx.Done():
				return
			case now := <-tick.C:
				n := live.Stats().Requests
				switch {
				case n != seen || live.InFlight() > 0:
					seen, since = n, now
				case now.Sub(since) >= limit:
					cancel(fmt.Errorf("%w: %v", errIdle, limit))
					return
				}
			}
		}
	}()
	return ctx, func() {
		cancel(nil)
		<-done
	}
}

// idled says of a connection that ended because of watchIdle that it did.
func idled(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); errors.Is(err, transmission.ErrDraining) && errors.Is(cause, errIdle) {
		return cause
	}
	return err
}
