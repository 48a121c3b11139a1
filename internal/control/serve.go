package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"
)

// Handler carries out what clients ask for. Its methods may be called
// concurrently. An error that is an *Error is passed on; others become one with
// the code Failed.
type Handler interface {
	Status(ctx context.Context) (Status, error)
	Exports(ctx context.Context) ([]Export, error)
	Connections(ctx context.Context) ([]Connection, error)
	// CloseConnection ends a connection; how is Drain or Cut.
	CloseConnection(ctx context.Context, id uint64, how Clients) error
	// AddExport serves an export that a section of the configuration file with
	// these keys would describe.
	AddExport(ctx context.Context, name string, keys map[string]string) (Changes, error)
	// ChangeExport is AddExport for one that is there. Where clients have to
	// leave first, and how is not Stay, it waits for them, until ctx is done.
	ChangeExport(ctx context.Context, name string, keys map[string]string, how Clients) (Changes, error)
	RemoveExport(ctx context.Context, name string, how Clients) (Changes, error)
	// Reload reads the configuration file again.
	Reload(ctx context.Context) (Changes, error)
	// ReloadCerts reads keys and certificates again.
	ReloadCerts(ctx context.Context) error
	// Section returns what an export was configured by.
	Section(ctx context.Context, name string) (Section, error)
	// Merge begins to merge what the waitfile of an export has collected, and, with wait,
	// waits for the end, until ctx is done. MergeAll is Merge for all exports.
	Merge(ctx context.Context, name string, wait bool) ([]Merge, error)
	MergeAll(ctx context.Context, wait bool) ([]Merge, error)
}

// Limits of a server.
const (
	maxClients  = 32
	idleTime    = 10 * time.Minute // between two requests
	writeTime   = 30 * time.Second
	defaultWait = 30 * time.Second
	acceptPause = 100 * time.Millisecond // behind a failed accept
)

// Serve serves the clients of a listener until ctx is done, or the listener is
// closed. It closes the listener, waits for the clients' requests to end, and returns
// nil, or why the listener failed. What clients change is logged.
func Serve(ctx context.Context, l net.Listener, h Handler, log *slog.Logger) error {
	ctx, cancel := context.WithCancel(ctx)
	var clients sync.WaitGroup
	defer clients.Wait()
	defer cancel()
	defer context.AfterFunc(ctx, func() { l.Close() })()
	defer l.Close()
	room := make(chan struct{}, maxClients)
	for {
		nc, err := l.Accept()
		var again interface{ Temporary() bool }
		switch {
		case err == nil:
		case ctx.Err() != nil, errors.Is(err, net.ErrClosed):
			return nil
		case errors.As(err, &again) && again.Temporary(): // out of descriptors: that passes
			select {
			case <-time.After(acceptPause):
			case <-ctx.Done():
			}
			continue
		default:
			return fmt.Errorf("control socket: %w", err)
		}
		select {
		case room <- struct{}{}:
		default:
			nc.SetWriteDeadline(time.Now().Add(time.Second))
			send(nc, Response{Error: errorf(Failed, "the control socket has all its %d clients; try again later", maxClients)})
			nc.Close()
			continue
		}
		clients.Go(func() {
			defer func() { <-room }()
			serve(ctx, nc, h, log)
		})
	}
}

// serve serves one client.
func serve(ctx context.Context, nc net.Conn, h Handler, log *slog.Logger) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer nc.Close()
	defer context.AfterFunc(ctx, func() { nc.SetReadDeadline(time.Unix(1, 0)) })()
	var marks atomic.Int64
	for line := range received(ctx, nc, cancel, &marks) {
		marks.Add(1)
		r, bad := line.request, line.bad
		resp := Response{}
		if bad == nil {
			resp.Result, bad = perform(ctx, r, h, log)
		}
		if resp.Error = bad; bad != nil {
			resp.Result = nil
		}
		nc.SetWriteDeadline(time.Now().Add(writeTime))
		if send(nc, resp) != nil || line.last {
			return
		}
		marks.Add(1)
	}
}

// line is what a client has sent.
type line struct {
	request *Request
	bad     *Error
	last    bool // nothing behind it can be understood
}

// received returns what a client sends. Reading goes on while a request is
// carried out, so that the end of a connection is noticed: then ctx is cancelled. A
// client that has only ended its own half, as a pipe into a socket does, gets its answers.
// One that waits for an answer is not idle: marks counts the beginnings and the ends of
// requests.
func received(ctx context.Context, nc net.Conn, cancel context.CancelCauseFunc, marks *atomic.Int64) <-chan line {
	all := make(chan line)
	go func() {
		defer close(all)
		in := lines{r: nc, limit: MaxRequest}
		for {
			before := marks.Load()
			nc.SetReadDeadline(time.Now().Add(idleTime))
			if ctx.Err() != nil {
				return // set the deadline behind who ends ctx
			}
			text, err := in.read()
			var x line
			switch {
			case errors.Is(err, os.ErrDeadlineExceeded) && (before%2 == 1 || marks.Load() != before):
				continue // a request is being carried out, or was
			case errors.Is(err, errTooLong):
				x = line{bad: errorf(BadRequest, "the request is longer than %d bytes", MaxRequest), last: true}
			case err == io.EOF: // perhaps only of what it has to say
				return
			case err == io.ErrUnexpectedEOF:
				x = line{bad: errorf(BadRequest, "the request does not end in a newline"), last: true}
			case err != nil:
				cancel(fmt.Errorf("the client: %w", err))
				return
			default:
				x.request, x.bad = parse(text)
			}
			select {
			case all <- x:
			case <-ctx.Done():
				return
			}
			if x.last {
				return
			}
		}
	}()
	return all
}

// send writes one response.
func send(nc net.Conn, r Response) error {
	r.Version = Version
	text, err := json.Marshal(r)
	if err != nil {
		return err
	}
	_, err = nc.Write(append(text, '\n'))
	return err
}

// perform carries out a request.
func perform(ctx context.Context, r *Request, h Handler, log *slog.Logger) (result json.RawMessage, bad *Error) {
	defer func() {
		if v := recover(); v != nil {
			log.Error("panic in a request on the control socket", "op", string(r.Op), "panic", fmt.Sprint(v), "stack", string(debug.Stack()))
			result, bad = nil, errorf(Failed, "a fault in the server; its log says more")
		}
	}()
	limit := defaultWait
	if r.Seconds > 0 {
		limit = time.Duration(r.Seconds * float64(time.Second))
	}
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("not done after %v", limit))
	defer cancel()
	value, err := call(ctx, r, h)
	if !asks(r.Op) {
		attrs := []any{"op", short(string(r.Op))}
		switch {
		case r.Op == OpClose:
			attrs = append(attrs, "connection", r.ID)
		case r.All:
			attrs = append(attrs, "all", true)
		case r.Op != OpReload && r.Op != OpCerts:
			attrs = append(attrs, "export", short(r.Export))
		}
		if err != nil {
			attrs = append(attrs, "error", err)
		}
		log.Info("control", attrs...)
	}
	if err != nil {
		if !errors.As(err, &bad) {
			bad = &Error{Failed, err.Error()}
		}
		return nil, bad
	}
	if result, err = json.Marshal(value); err != nil {
		return nil, &Error{Failed, err.Error()}
	}
	return result, nil
}

// asks tells whether a request changes nothing.
func asks(op Op) bool {
	return op == OpStatus || op == OpList || op == OpConnections || op == OpShow
}

// call calls the method for a request.
func call(ctx context.Context, r *Request, h Handler) (any, error) {
	type nothing struct{}
	switch clients := how[r.Clients]; r.Op {
	case OpStatus:
		return h.Status(ctx)
	case OpList:
		return h.Exports(ctx)
	case OpConnections:
		return h.Connections(ctx)
	case OpClose:
		return nothing{}, h.CloseConnection(ctx, r.ID, clients)
	case OpAdd:
		return h.AddExport(ctx, r.Export, r.Keys)
	case OpChange:
		return h.ChangeExport(ctx, r.Export, r.Keys, clients)
	case OpRemove:
		return h.RemoveExport(ctx, r.Export, clients)
	case OpReload:
		return h.Reload(ctx)
	case OpCerts:
		return nothing{}, h.ReloadCerts(ctx)
	case OpShow:
		return h.Section(ctx, r.Export)
	case OpMerge:
		if r.All {
			return h.MergeAll(ctx, r.Wait)
		}
		return h.Merge(ctx, r.Export, r.Wait)
	}
	return nil, errorf(BadRequest, "there is no request %q", short(string(r.Op)))
}
