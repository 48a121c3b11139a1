package supervise

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"syscall"
	"time"

	"nbd.example/nbd/internal/daemon"
	"nbd.example/nbd/kernel"
	"nbd.example/nbd/supervise/pass"
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
	// detaching is held for reading by who detaches, until he has told the outcome.
	detaching sync.RWMutex
}

// lastWords is how long the end of a control socket waits for answers to who detaches:
// often the process ends because that was its last device.
const lastWords = time.Second

// Listen serves the control socket at path, until Close. See [Client].
// [ControlPath] and [ServicePath] say where.
func (s *Supervisor) Listen(path string) error {
	config := &net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		// Before it has a name nobody can connect.
		return c.Control(func(fd uintptr) { restrict(int(fd)) })
	}}
	l, err := daemon.ListenUnixWith(context.Background(), config, path)
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
	told := make(chan struct{})
	c.wg.Go(func() {
		c.detaching.Lock()
		defer c.detaching.Unlock()
		close(told)
	})
	select {
	case <-told:
	case <-time.After(lastWords):
	}
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
			if !c.answer(ctx, conn, line, lines) {
				return
			}
		case <-ctx.Done():
			return
		}
	}
}

// answer answers one request, and reports whether there can be more. What the client
// sends from then on comes in lines.
func (c *control) answer(ctx context.Context, conn *net.UnixConn, line []byte, lines <-chan []byte) bool {
	r, err := parseRequest(line)
	if err == nil && r.Op == opHandOver {
		c.handOver(ctx, conn, lines)
		return false
	}
	var out *reply
	if err == nil {
		if r.Op == opDetach {
			c.detaching.RLock()
			defer c.detaching.RUnlock()
		}
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
	conn.SetWriteDeadline(time.Now().Add(c.s.times.write))
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
	case opTaken:
		return nil, errors.New("peer sent that it has taken over what was not passed on")
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
func (c *control) handOver(ctx context.Context, conn *net.UnixConn, lines <-chan []byte) {
	list, err := c.s.handOver(ctx, func(sockets []Socket) error {
		if err := c.passOn(conn, sockets); err != nil {
			return err
		}
		return c.awaitTaken(ctx, lines)
	})
	if err != nil {
		c.send(conn, failure(err))
		return
	}
	c.l.Close() // the next one listens at the same path as soon as it has the answer
	c.send(conn, &reply{Handed: list})
	c.s.finish()
}

// passOn sends sockets with their names, in lines of which the last one has none.
func (c *control) passOn(conn *net.UnixConn, sockets []Socket) error {
	for len(sockets) > 0 {
		n := min(len(sockets), pass.MaxRights)
		r := &reply{More: true}
		for _, s := range sockets[:n] {
			r.Names = append(r.Names, s.Name)
		}
		line, err := encode(r)
		if err != nil {
			return err
		}
		conn.SetWriteDeadline(time.Now().Add(c.s.times.write))
		if err := pass.Send(conn, line, sockets[:n]); err != nil {
			return err
		}
		sockets = sockets[n:]
	}
	return c.send(conn, &reply{})
}

// awaitTaken waits until the other process says that it has everything.
func (c *control) awaitTaken(ctx context.Context, lines <-chan []byte) error {
	limit := time.NewTimer(c.s.times.taken)
	defer limit.Stop()
	select {
	case line := <-lines:
		if r, err := parseRequest(line); err != nil || r.Op != opTaken {
			return fmt.Errorf("peer sent %.40q instead of the request %q", line, opTaken)
		}
		return nil
	case <-ctx.Done():
		return errors.New("the process that wanted to take over has gone")
	case <-limit.C:
		return fmt.Errorf("the process that wanted to take over does not say that it has everything, after %v", c.s.times.taken)
	}
}
