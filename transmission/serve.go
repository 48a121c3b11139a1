package transmission

import (
	"context"
	"errors"
	"net"
)

// Errors with which Serve says why a connection ended. Nil means NBD_CMD_DISC.
var (
	ErrHungUp   = errors.New("the client hung up without NBD_CMD_DISC")
	ErrDraining = errors.New("the server is shutting down")
	ErrPanic    = errors.New("a fault in the server")
	ErrCut      = errors.New("the connection was cut")
)

func isPanic(err error) bool { return errors.Is(err, ErrPanic) }

// Serve answers requests on conn until the client disconnects or ctx is done.
// Then it reads nothing more, answers what was read, and returns. The caller
// closes conn, and not before: what is still in it would else come after the changes
// of others. [Live.Cut] ends a connection at once.
//
// conn may be any net.Conn. The kernel's own sockets are used without a copy
// where possible; others, such as TLS, are read and written as streams.
func Serve(ctx context.Context, conn net.Conn, s *Session, cfg *Config) (Stats, error) {
	return newConn(ctx, conn, s, cfg).serve(ctx)
}

func (c *conn) serve(ctx context.Context) (st Stats, err error) {
	if !c.readOnly {
		c.group.join(c)
		defer c.group.leave(c)
		err = c.fence(true)
	}
	if err == nil {
		err = c.run(ctx)
	} else {
		err = c.verdict(err)
	}
	st = c.stats
	st.Errors += c.wstats.errors.Load()
	st.BytesRead += c.wstats.read.Load()
	st.BytesWritten += c.wstats.written.Load()
	return st, err
}
