package supervise

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"nbd.example/nbd/kernel"
)

// The control protocol: the client sends one line of JSON, a request, and gets one line,
// a reply; then it may send the next. Only the answer to opHandOver takes several lines,
// which carry sockets; to the last of them the client answers opTaken, which gets the
// last reply. Until then the supervisor keeps what it passes on.

const (
	// maxRequest bounds a request, in bytes; the replies to it are bounded by maxReply.
	maxRequest = 64 << 10
	maxReply   = 16 << 20
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
	// opTaken follows opHandOver: whoever sends it has all sockets.
	opTaken operation = "taken"
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
	Kinds  []kind   `json:"kinds,omitempty"` // of Error, for programs
	States []State  `json:"states,omitempty"`
	Size   int64    `json:"size,omitempty"`
	Busy   *busy    `json:"busy,omitempty"`
	Names  []string `json:"names,omitempty"`  // of the sockets that come with this line
	More   bool     `json:"more,omitempty"`   // another line follows
	Handed []handed `json:"handed,omitempty"` // in the reply to opTaken
}

type busy struct {
	Info   kernel.Info `json:"info"`
	Forced bool        `json:"forced,omitempty"`
}

// parseRequest reads a request, and checks that it has what it needs.
func parseRequest(line []byte) (*request, error) {
	r := &request{}
	if err := json.Unmarshal(line, r); err != nil {
		return nil, fmt.Errorf("peer sent a line that is no request: %w", err)
	}
	switch r.Op {
	case opList, opUpgrade, opHandOver, opTaken:
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
	case r.Busy != nil:
		return r, &BusyError{Info: r.Busy.Info, Forced: r.Busy.Forced}
	case slices.Contains(r.Kinds, kindAttached) && len(r.States) == 1:
		return r, &AttachedError{State: r.States[0]}
	}
	return r, &remoteError{r.Error, known(r.Kinds)}
}

// failure makes the reply that says err.
func failure(err error) *reply {
	r := &reply{Error: err.Error(), Kinds: kindsOf(err)}
	var b *BusyError
	var a *AttachedError
	switch {
	case errors.As(err, &b):
		r.Busy = &busy{b.Info, b.Forced}
	case errors.As(err, &a):
		r.Kinds, r.States = append(r.Kinds, kindAttached), []State{a.State}
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
