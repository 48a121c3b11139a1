package supervise

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"nbd.example/nbd/kernel"
	"nbd.example/nbd/supervise/pass"
)

// ControlPath returns the path of the control socket of a process.
func ControlPath(dir string, pid int) string {
	return filepath.Join(dir, strconv.Itoa(pid)+".sock")
}

// ServicePath returns the path of the control socket of the supervisor that runs as a
// service.
func ServicePath(dir string) string { return filepath.Join(dir, "supervisor.sock") }

// Client speaks with a supervisor in another process through its control socket.
// Methods may be called concurrently; they wait for one another. When a context ends
// during a call, the connection is closed, and what was asked for may yet happen.
type Client struct {
	mu   sync.Mutex
	conn *net.UnixConn
	in   *bufio.Reader
}

// Dial connects to a control socket. If nobody listens there the error wraps
// syscall.ECONNREFUSED or fs.ErrNotExist.
func Dial(ctx context.Context, path string) (*Client, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("supervisor: %w", err)
	}
	return &Client{conn: conn.(*net.UnixConn), in: bufio.NewReader(conn)}, nil
}

// Close ends the connection.
func (c *Client) Close() error { return c.conn.Close() }

// guard makes the connection's waits end with ctx, until the returned function is
// called.
func guard(ctx context.Context, conn net.Conn) (end func()) {
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	return func() { stop() }
}

// ErrHungUp says that the supervisor behind a control socket has ended, or has become
// another program, before it answered.
var ErrHungUp = errors.New("it hung up")

// call sends a request and waits for the reply.
func (c *Client) call(ctx context.Context, r *request) (*reply, error) {
	line, err := encode(r)
	if err != nil {
		return nil, err
	}
	if len(line) > maxRequest {
		return nil, fmt.Errorf("a request of %d bytes, more than %d", len(line), maxRequest)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	defer guard(ctx, c.conn)()
	if _, err = c.conn.Write(line); err == nil {
		line, err = readLine(c.in)
	}
	if err != nil {
		c.conn.Close() // nobody knows which reply comes next
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		} else if err == io.EOF {
			err = ErrHungUp
		}
		return nil, fmt.Errorf("supervisor: %w", err)
	}
	return parseReply(line)
}

// readLine reads a line of at most maxReply bytes.
func readLine(in *bufio.Reader) ([]byte, error) {
	var line []byte
	for {
		part, err := in.ReadSlice('\n')
		line = append(line, part...)
		switch {
		case len(line) > maxReply:
			return nil, fmt.Errorf("peer sent a reply of more than %d bytes", maxReply)
		case err != bufio.ErrBufferFull:
			return line, err
		}
	}
}

// one returns the only state of a reply.
func (r *reply) one(err error) (*State, error) {
	if err != nil {
		return nil, err
	}
	if len(r.States) != 1 {
		return nil, fmt.Errorf("peer sent a reply with %d devices", len(r.States))
	}
	return &r.States[0], nil
}

// List returns what the supervisor keeps.
func (c *Client) List(ctx context.Context) ([]State, error) {
	r, err := c.call(ctx, &request{Op: opList})
	if err != nil {
		return nil, err
	}
	return r.States, nil
}

// Status returns one device, or an error that wraps [kernel.ErrNoDevice] if the
// supervisor does not keep it.
func (c *Client) Status(ctx context.Context, i kernel.Index) (*State, error) {
	r, err := c.call(ctx, &request{Op: opStatus, Index: &i})
	return r.one(err)
}

// Attach is [Supervisor.Attach] there.
func (c *Client) Attach(ctx context.Context, spec *Spec) (*State, error) {
	r, err := c.call(ctx, &request{Op: opAttach, Spec: spec})
	return r.one(err)
}

// Detach is [Device.Detach] there.
func (c *Client) Detach(ctx context.Context, i kernel.Index, force bool) error {
	_, err := c.call(ctx, &request{Op: opDetach, Index: &i, Force: force})
	return err
}

// Resize is [Device.Resize] there.
func (c *Client) Resize(ctx context.Context, i kernel.Index, size int64) (int64, error) {
	r, err := c.call(ctx, &request{Op: opResize, Index: &i, Size: size})
	if err != nil {
		return 0, err
	}
	return r.Size, nil
}

// Upgrade makes the supervisor replace itself by its newer version. See
// [Config.Upgrade]. It returns when that was done, which ends the connection, or has
// failed.
func (c *Client) Upgrade(ctx context.Context) error {
	_, err := c.call(ctx, &request{Op: opUpgrade})
	if errors.Is(err, ErrHungUp) {
		return nil
	}
	return err
}

// TakeOver takes over all that the supervisor behind a control socket keeps: Adopt, which
// should be called soon, finds the sockets, as if they had been among Config.Inherited.
// From then on that supervisor keeps nothing, and does not listen any more. After an error
// it goes on; if there is none, the error is that of [Dial].
func (s *Supervisor) TakeOver(ctx context.Context, path string) error {
	sockets, list, err := takeOver(ctx, path)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, h := range list {
		s.former[h.Index] = h
	}
	s.inherited = append(s.inherited, sockets...)
	return nil
}

func takeOver(ctx context.Context, path string) (sockets []Socket, list []handed, err error) {
	c, err := Dial(ctx, path)
	if err != nil {
		return nil, nil, err
	}
	defer c.Close()
	defer guard(ctx, c.conn)()
	if sockets, list, err = c.takeOver(); err == nil {
		return sockets, list, nil
	}
	for _, f := range sockets {
		f.File.Close()
	}
	switch {
	case ctx.Err() != nil:
		err = context.Cause(ctx)
	case errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		err = ErrHungUp
	}
	return nil, nil, fmt.Errorf("take over from %s: %w", path, err)
}

// takeOver is the client's part of opHandOver. Sockets may come along with an error.
// The list is of what was handed over, nil if that was not said.
func (c *Client) takeOver() (sockets []Socket, list []handed, err error) {
	if err := c.say(opHandOver); err != nil {
		return nil, nil, err
	}
	if sockets, err = receiveAll(c.conn); err != nil {
		return sockets, nil, err
	}
	if err := c.say(opTaken); err != nil {
		return sockets, nil, err
	}
	line, err := readLine(c.in)
	if err != nil {
		// It has ended, or will keep what it does not know to be taken: the files tell
		// Adopt which.
		return sockets, nil, nil
	}
	r, err := parseReply(line)
	if err != nil {
		return sockets, nil, err
	}
	return sockets, r.Handed, nil
}

// say sends a request that is nothing but its name.
func (c *Client) say(op operation) error {
	line, err := encode(&request{Op: op})
	if err == nil {
		_, err = c.conn.Write(line)
	}
	return err
}

// receiveAll reads lines until one says that there are no more. The sockets come in the
// order in which the lines name them.
func receiveAll(conn *net.UnixConn) (sockets []Socket, err error) {
	var files []*os.File
	defer func() {
		for _, f := range files { // nobody named them
			f.Close()
		}
	}()
	var text []byte
	b := make([]byte, 64<<10)
	for {
		n, more, err := pass.Receive(conn, b)
		files = append(files, more...)
		if n == 0 && err == nil {
			err = io.EOF
		}
		if err != nil {
			return sockets, err
		}
		if text = append(text, b[:n]...); len(text) > maxReply {
			return sockets, errors.New("peer sent a line that does not end")
		}
		for {
			end := bytes.IndexByte(text, '\n')
			if end < 0 {
				break
			}
			r, err := parseReply(text[:end])
			text = text[end+1:]
			if err != nil {
				return sockets, err
			}
			if len(r.Names) > len(files) {
				return sockets, fmt.Errorf("peer sent %d names with %d sockets", len(r.Names), len(files))
			}
			for _, name := range r.Names {
				sockets = append(sockets, Socket{Name: name, File: files[0]})
				files = files[1:]
			}
			switch {
			case r.More:
			case len(text) == 0:
				return sockets, nil
			default: // it does not wait any more for what it is to be told
				if _, err = parseReply(text); err == nil {
					err = errors.New("peer sent more than it was asked for")
				}
				return sockets, err
			}
		}
	}
}
