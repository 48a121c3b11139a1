package control

import (
	"context"
	"fmt"
	"net"
	"os"
	"strings"

	"nbd.example/nbd/internal/daemon"
)

// Listen listens on a unix socket that nobody but its owner may use. What a dead
// server left is replaced. While it works, files that other goroutines of this
// process create may become their owner's alone, too: it is for the start of a
// program.
func Listen(ctx context.Context, path string) (net.Listener, error) {
	if strings.HasPrefix(path, "@") {
		return nil, fmt.Errorf("control socket: %s is no file, so that nothing would say who may use it; name a path", path)
	}
	restore := ownerOnly()
	l, err := daemon.ListenUnix(ctx, path)
	restore()
	if err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, fmt.Errorf("control socket: %w", err)
	}
	return l, nil
}
