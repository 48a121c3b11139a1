package vsocket

import (
	"context"
	"fmt"
	"net"
	"os"

	"github.com/mdlayher/vsock"
)

// conn gives a connection this package's addresses. What is embedded keeps the
// socket within reach of those who use it without a copy.
type conn struct {
	*vsock.Conn
	local, remote Addr
}

func (c *conn) LocalAddr() net.Addr  { return c.local }
func (c *conn) RemoteAddr() net.Addr { return c.remote }

func wrap(c net.Conn) net.Conn {
	v, ok := c.(*vsock.Conn)
	if !ok {
		return c
	}
	return &conn{v, addr(v.LocalAddr()), addr(v.RemoteAddr())}
}

func addr(a net.Addr) Addr {
	if v, ok := a.(*vsock.Addr); ok {
		return Addr{v.ContextID, v.Port}
	}
	return Addr{}
}

type listener struct{ *vsock.Listener }

func (l listener) Addr() net.Addr { return addr(l.Listener.Addr()) }

func (l listener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return wrap(c), nil
}

// Listen listens on an address. Port 0 is any free one.
func Listen(a Addr) (net.Listener, error) {
	l, err := vsock.ListenContextID(a.Context, a.Port, nil)
	if err != nil {
		return nil, fmt.Errorf("listen on %v: %w", a, err)
	}
	return listener{l}, nil
}

// FileListener makes a listener of a socket that listens already. The caller
// closes f; the listener has its own.
func FileListener(f *os.File) (net.Listener, error) {
	l, err := vsock.FileListener(f)
	if err != nil {
		return nil, err
	}
	return listener{l}, nil
}

// Dial connects.
func Dial(ctx context.Context, a Addr) (net.Conn, error) {
	c, err := vsock.DialContext(ctx, a.Context, a.Port, nil)
	if err != nil {
		return nil, fmt.Errorf("connect to %v: %w", a, err)
	}
	return wrap(c), nil
}
