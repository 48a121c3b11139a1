package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// ErrInUse says that somebody serves a unix socket.
var ErrInUse = errors.New("another server listens on it")

// lockPatience is how long others may hold the lock on a folder, who need it for a moment.
const lockPatience = 5 * time.Second

// ListenUnix listens on a unix socket. A socket at path that nobody serves is
// replaced; one that answers, or a file of another kind, is left alone. The socket
// is removed when the listener is closed. On Linux a path that starts with @ has
// no file.
func ListenUnix(ctx context.Context, path string) (net.Listener, error) {
	return ListenUnixWith(ctx, &net.ListenConfig{}, path)
}

// ListenUnixWith is ListenUnix by the means of lc.
func ListenUnixWith(ctx context.Context, lc *net.ListenConfig, path string) (net.Listener, error) {
	if strings.HasPrefix(path, "@") {
		return lc.Listen(ctx, "unix", path)
	}
	// Two servers that start at the same moment must not remove each other's
	// sockets: the folder is locked from the look to the listening.
	unlock := lockFolder(ctx, filepath.Dir(path), lockPatience)
	defer unlock()
	if err := removeStale(ctx, path); err != nil {
		return nil, fmt.Errorf("listen on %s: %w", path, err)
	}
	l, err := lc.Listen(ctx, "unix", path)
	if len(path) > longPath && errors.Is(err, syscall.EINVAL) {
		return nil, fmt.Errorf("listen on %s: its %d bytes are more than the system takes for the path of a socket (Linux 107, others 103); choose a shorter one", path, len(path))
	}
	return l, err
}

// longPath is the longest path that every system takes for a socket, in bytes.
const longPath = 103

// removeStale removes the socket at path if nobody serves it.
func removeStale(ctx context.Context, path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case info.Mode().Type() != fs.ModeSocket:
		return errors.New("there is a file of that name which is not a socket; remove it, or choose another name")
	}
	d := net.Dialer{Timeout: 5 * time.Second}
	conn, err := d.DialContext(ctx, "unix", path)
	if err == nil {
		conn.Close()
		return ErrInUse
	}
	if !refused(err) {
		return fmt.Errorf("find out whether another server listens on it: %w", err)
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("remove the socket that a dead server left: %w", err)
	}
	return nil
}
