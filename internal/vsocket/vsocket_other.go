//go:build !linux

package vsocket

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
)

// Listen fails: only Linux has vsock here.
func Listen(a Addr) (net.Listener, error) {
	return nil, fmt.Errorf("listen on %v: %w", a, errors.ErrUnsupported)
}

// FileListener fails: only Linux has vsock here.
func FileListener(*os.File) (net.Listener, error) { return nil, errors.ErrUnsupported }

// Dial fails: only Linux has vsock here.
func Dial(_ context.Context, a Addr) (net.Conn, error) {
	return nil, fmt.Errorf("connect to %v: %w", a, errors.ErrUnsupported)
}
