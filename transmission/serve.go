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
)

// Serve answers requests on conn until the client disconnects or ctx is done.
// Then it reads nothing more, answers what was read, and returns. It does not
// close conn.
func Serve(ctx context.Context, conn net.Conn, s *Session, cfg *Config) (Stats, error) {
	return Stats{}, errors.ErrUnsupported
}
