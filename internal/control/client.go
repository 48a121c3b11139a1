package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"sync"
	"syscall"
	"time"
)

// Client asks a server. Its methods may be called concurrently; each waits for
// the one before.
type Client struct {
	path string

	mu sync.Mutex
	nc net.Conn
	in lines
}

// Unanswered says that no server could be asked, or that it gave no answer. What was asked
// for may have been done.
type Unanswered struct{ Err error }

// Error returns the text.
func (u *Unanswered) Error() string { return u.Err.Error() }

// Unwrap returns Err.
func (u *Unanswered) Unwrap() error { return u.Err }

// Dial connects to the control socket at path. An error is an *Unanswered.
func Dial(ctx context.Context, path string) (*Client, error) {
	nc, err := new(net.Dialer).DialContext(ctx, "unix", path)
	if err != nil {
		return nil, &Unanswered{explain(err, path)}
	}
	return newClient(nc, path), nil
}

// explain says what to do about a socket that cannot be connected to.
func explain(err error, path string) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("there is no control socket at %s: start nbd-server with --control %s, or name the socket of one that runs with --socket", path, path)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("the control socket %s is not for this user: ask as its owner, or let the group have it (chgrp, chmod g+rw)", path)
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("nobody listens on the control socket %s: the server that made it has ended", path)
	case errors.Is(err, syscall.EAGAIN):
		return fmt.Errorf("the server does not take what comes to the control socket %s: it is stopped, or stuck: %w", path, err)
	}
	return fmt.Errorf("control socket: %w", err)
}

func newClient(nc net.Conn, path string) *Client {
	return &Client{path: path, nc: nc, in: lines{r: nc, limit: MaxResponse}}
}

// Close ends the connection.
func (c *Client) Close() error { return c.nc.Close() }

// Do sends a request, whose Version it sets, and stores the result in result, a
// pointer, unless that is nil. An error of the server is an *Error; if there is no answer, it
// is an *Unanswered. When ctx is done before the answer is there, the client cannot be used
// any more.
func (c *Client) Do(ctx context.Context, r Request, result any) error {
	r.Version = Version
	text, err := json.Marshal(r)
	if err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	stop := context.AfterFunc(ctx, func() { c.nc.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	line, err := c.exchange(append(text, '\n'))
	if err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return &Unanswered{fmt.Errorf("%s on %s: %w", r.Op, c.path, err)}
	}
	var resp Response
	if err := json.Unmarshal(line, &resp); err != nil {
		return fmt.Errorf("%s on %s: peer sent what is no answer: %w", r.Op, c.path, err)
	}
	switch {
	case resp.Error != nil:
		return resp.Error
	case resp.Version != Version:
		return fmt.Errorf("%s on %s: peer sent an answer of version %d, want %d", r.Op, c.path, resp.Version, Version)
	case result == nil:
		return nil
	}
	if err := json.Unmarshal(resp.Result, result); err != nil {
		return fmt.Errorf("%s on %s: peer sent a result that cannot be understood: %w", r.Op, c.path, err)
	}
	return nil
}

// exchange sends a line and reads one.
func (c *Client) exchange(text []byte) ([]byte, error) {
	// A server that has no room answers before it was asked, and hangs up.
	_, failed := c.nc.Write(text)
	line, err := c.in.read()
	switch {
	case err == nil:
		return line, nil
	case failed != nil:
		return nil, failed
	case errors.Is(err, io.EOF):
		return nil, errors.New("the server has hung up")
	}
	return nil, err
}
