package supervise

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"nbd.example/nbd/kernel"
)

// maxClients bounds the connections of a control socket.
const maxClients = 64

// control is a control socket. It is for the user that made it, by the rights of its
// file.
type control struct {
	s      *Supervisor
	l      *net.UnixListener
	path   string
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
	places chan struct{}
}

// Listen serves the control socket at path, until Close. See [Client].
// [ControlPath] and [ServicePath] say where.
func (s *Supervisor) Listen(path string) error {
	if err := removeStale(path); err != nil {
		return fmt.Errorf("control socket: %w", err)
	}
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		// Before it has a name nobody can connect.
		return c.Control(func(fd uintptr) { restrict(int(fd)) })
	}}
	l, err := config.Listen(context.Background(), "unix", path)
	if err != nil {
		return fmt.Errorf("control socket: %w", err)
	}
	c := &control{s: s, l: l.(*net.UnixListener), path: path, places: make(chan struct{}, maxClients)}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	s.mu.Lock()
	closed, taken := s.closed, s.control != nil
	if !closed && !taken {
		s.control = c
	}
	s.mu.Unlock()
	switch {
	case closed:
		l.Close()
		return ErrClosed
	case taken:
		l.Close()
		return errors.New("control socket: there is one already")
	}
	c.wg.Go(c.accept)
	for _, d := range s.Devices() {
		d.update(func(st *State) { st.Control = path })
	}
	return nil
}

// removeStale removes the socket of a process that is gone.
func removeStale(path string) error {
	conn, err := net.DialTimeout("unix", path, 5*time.Second)
	switch {
	case err == nil:
		conn.Close()
		return fmt.Errorf("%s: another process listens there", path)
	case errors.Is(err, syscall.ECONNREFUSED):
		return os.Remove(path)
	}
	return nil
}

// controlPath returns the path of the control socket, "" if there is none.
func (s *Supervisor) controlPath() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.control == nil {
		return ""
	}
	return s.control.path
}

// stopListening ends the control socket and all its connections.
func (s *Supervisor) stopListening() {
	s.mu.Lock()
	c := s.control
	s.mu.Unlock()
	if c == nil {
		return
	}
	c.l.Close()
	c.cancel()
	c.wg.Wait()
}

func (c *control) accept() {
	for {
		conn, err := c.l.AcceptUnix()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil { // no descriptors left: somebody must close some
			select {
			case <-time.After(100 * time.Millisecond):
				continue
			case <-c.ctx.Done():
				return
			}
		}
		select {
		case c.places <- struct{}{}:
			c.wg.Go(func() {
				defer func() { <-c.places }()
				c.serve(conn)
			})
		default:
			conn.Close()
		}
	}
}

// serve answers one client.
func (c *control) serve(conn *net.UnixConn) {
	defer conn.Close()
	ctx, cancel := context.WithCancel(c.ctx)
	defer cancel()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	lines := make(chan []byte)
	read := make(chan struct{})
	go func() {
		defer close(read)
		defer cancel() // whoever has gone waits for nothing
		in := bufio.NewReaderSize(conn, maxRequest)
		for {
			line, err := in.ReadSlice('\n')
			if err != nil {
				return
			}
			select {
			case lines <- append([]byte(nil), line...):
			case <-ctx.Done():
				return
			}
		}
	}()
	defer func() { cancel(); conn.Close(); <-read }()
	for {
		select {
		case line := <-lines:
			if !c.answer(ctx, conn, line) {
				return
			}
		case <-ctx.Done():
			return
		}
	}
}

// answer answers one request, and reports whether there can be more.
func (c *control) answer(ctx context.Context, conn *net.UnixConn, line []byte) bool {
	r, err := parseRequest(line)
	if err == nil && r.Op == opHandOver {
		c.handOver(ctx, conn)
		return false
	}
	var out *reply
	if err == nil {
		out, err = c.do(ctx, r)
	}
	if err != nil {
		out = failure(err)
	}
	return c.send(conn, out) == nil
}

func (c *control) send(conn *net.UnixConn, r *reply) error {
	b, err := encode(r)
	if err != nil {
		return err
	}
	_, err = conn.Write(b)
	return err
}

// do carries out a request.
func (c *control) do(ctx context.Context, r *request) (*reply, error) {
	s := c.s
	switch r.Op {
	case opList:
		list := &reply{}
		for _, d := range s.Devices() {
			list.States = append(list.States, d.Status())
		}
		return list, nil
	case opAttach:
		d, err := s.Attach(ctx, r.Spec)
		if err != nil {
			return nil, err
		}
		return &reply{States: []State{d.Status()}}, nil
	case opUpgrade:
		if s.cfg.Upgrade == nil {
			return nil, errors.New("this supervisor cannot replace itself")
		}
		return &reply{}, s.cfg.Upgrade(ctx)
	}
	d := s.Device(*r.Index)
	if d == nil {
		return nil, fmt.Errorf("%s is not kept by this supervisor: %w", r.Index.Path(), kernel.ErrNoDevice)
	}
	switch r.Op {
	case opDetach:
		return &reply{}, d.Detach(ctx, r.Force)
	case opResize:
		size, err := d.Resize(ctx, r.Size)
		return &reply{Size: size}, err
	default:
		return &reply{States: []State{d.Status()}}, nil
	}
}

// handOver passes everything on to the process at the other end.
func (c *control) handOver(ctx context.Context, conn *net.UnixConn) {
	var failed error
	pass := func(sockets []Socket) {
		for len(sockets) > 0 && failed == nil {
			n := min(len(sockets), maxRights)
			r := &reply{More: true}
			for _, s := range sockets[:n] {
				r.Names = append(r.Names, s.Name)
			}
			var line []byte
			if line, failed = encode(r); failed == nil {
				failed = sendSockets(conn, line, sockets[:n])
			}
			sockets = sockets[n:]
		}
	}
	err := c.s.handOver(ctx, pass)
	out := &reply{}
	if err != nil {
		out = failure(err)
	}
	c.send(conn, out)
}
