package supervise

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"

	"nbd.example/nbd/kernel"
)

// The control protocol: the client sends one line of JSON, a request, and gets one line,
// a reply; then it may send the next. Only the answer to handOver takes several lines,
// which carry sockets.

const (
	// maxRequest bounds a request, in bytes; the replies to it are bounded by maxReply.
	maxRequest = 64 << 10
	maxReply   = 16 << 20
	// maxRights is how many descriptors Linux passes at a time (SCM_MAX_FD).
	maxRights = 253
)

// operation is what a request asks for.
type operation string

const (
	opList     operation = "list"
	opStatus   operation = "status"
	opAttach   operation = "attach"
	opDetach   operation = "detach"
	opResize   operation = "resize"
	opUpgrade  operation = "upgrade"
	opHandOver operation = "hand-over"
)

// request is what a client asks.
type request struct {
	Op    operation     `json:"op"`
	Index *kernel.Index `json:"index,omitempty"`
	Force bool          `json:"force,omitempty"`
	Size  int64         `json:"size,omitempty"` // bytes
	Spec  *Spec         `json:"spec,omitempty"`
}

// reply is what it is told.
type reply struct {
	Error  string   `json:"error,omitempty"`
	Code   code     `json:"code,omitempty"` // of Error, for programs
	States []State  `json:"states,omitempty"`
	Size   int64    `json:"size,omitempty"`
	Busy   *busy    `json:"busy,omitempty"`
	Names  []string `json:"names,omitempty"` // of the sockets that come with this line
	More   bool     `json:"more,omitempty"`  // another line follows
}

type busy struct {
	Info   kernel.Info `json:"info"`
	Forced bool        `json:"forced,omitempty"`
}

// code is what kind of an error it is.
type code string

const (
	codeBusy     code = "busy"
	codeAttached code = "attached"
	codeNone     code = "no-device"
	codeClosed   code = "closed"
)

// parseRequest reads a request, and checks that it has what it needs.
func parseRequest(line []byte) (*request, error) {
	r := &request{}
	if err := json.Unmarshal(line, r); err != nil {
		return nil, fmt.Errorf("peer sent a line that is no request: %w", err)
	}
	switch r.Op {
	case opList, opUpgrade, opHandOver:
	case opStatus, opDetach, opResize:
		if r.Index == nil {
			return nil, fmt.Errorf("peer sent a request %s without a device", r.Op)
		}
	case opAttach:
		if r.Spec == nil {
			return nil, errors.New("peer sent a request to attach nothing")
		}
	default:
		return nil, fmt.Errorf("peer sent an unknown request %.40q", r.Op)
	}
	return r, nil
}

// parseReply reads a reply, whose error is returned apart.
func parseReply(line []byte) (*reply, error) {
	r := &reply{}
	if err := json.Unmarshal(line, r); err != nil {
		return nil, fmt.Errorf("peer sent a line that is no reply: %w", err)
	}
	if r.Error == "" {
		return r, nil
	}
	switch {
	case r.Code == codeBusy && r.Busy != nil:
		return r, &BusyError{Info: r.Busy.Info, Forced: r.Busy.Forced}
	case r.Code == codeAttached && len(r.States) == 1:
		return r, &AttachedError{State: r.States[0]}
	case r.Code == codeNone:
		return r, &remoteError{r.Error, kernel.ErrNoDevice}
	case r.Code == codeClosed:
		return r, &remoteError{r.Error, ErrClosed}
	}
	return r, &remoteError{r.Error, nil}
}

// remoteError is an error of another process.
type remoteError struct {
	text string
	is   error // nil if it is none that is known
}

func (e *remoteError) Error() string { return e.text }
func (e *remoteError) Unwrap() error { return e.is }

// failure makes the reply that says err.
func failure(err error) *reply {
	r := &reply{Error: err.Error()}
	var b *BusyError
	var a *AttachedError
	switch {
	case errors.As(err, &b):
		r.Code, r.Busy = codeBusy, &busy{b.Info, b.Forced}
	case errors.As(err, &a):
		r.Code, r.States = codeAttached, []State{a.State}
	case errors.Is(err, kernel.ErrNoDevice):
		r.Code = codeNone
	case errors.Is(err, ErrClosed), errors.Is(err, ErrHandedOver):
		r.Code = codeClosed
	}
	return r
}

// encode makes a line.
func encode(v any) ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	err := e.Encode(v)
	return b.Bytes(), err
}
