package server

import (
	"context"
	"errors"
	"time"
)

// errGone says that a client did not wait for its export.
var errGone = errors.New("the client has hung up meanwhile")

// goneCheck is how often it is looked whether a client is still there that waits for its
// export to be prepared.
const goneCheck = 500 * time.Millisecond

// whileThere returns a context that is done, with errGone, when the client that ctx belongs to
// has hung up, as far as the system tells. stop must be called.
func whileThere(ctx context.Context) (_ context.Context, stop func()) {
	c, _ := ctx.Value(connKey{}).(*conn)
	if c == nil {
		return ctx, func() {}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	go func() {
		t := time.NewTicker(goneCheck)
		defer t.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-t.C:
				if hungUp(c.nc) {
					cancel(errGone)
				}
			}
		}
	}()
	return ctx, func() { cancel(nil) }
}
