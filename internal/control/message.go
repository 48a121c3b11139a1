package control

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"
)

// Version of the protocol.
const Version = 1

// MaxRequest and MaxResponse bound a line, in bytes.
const (
	MaxRequest  = 1 << 20
	MaxResponse = 64 << 20
)

// Op is what is asked for.
type Op string

// Ops.
const (
	OpStatus      Op = "status"      // a [Status]
	OpList        Op = "list"        // a list of [Export]
	OpConnections Op = "connections" // a list of [Connection]
	OpShow        Op = "show"        // the [Section] of Export
	OpClose       Op = "close"       // the connection ID; Clients is drain or cut
	OpAdd         Op = "add"         // Export, of Keys: [Changes]
	OpChange      Op = "change"      // Export, of Keys, and what becomes of its Clients: [Changes]
	OpRemove      Op = "remove"      // Export, and what becomes of its Clients: [Changes]
	OpReload      Op = "reload"      // the configuration file: [Changes]
	OpCerts       Op = "certs"       // keys and certificates are read again
	OpMerge       Op = "merge"       // what the waitfile of Export, or of All, has collected: a list of [Merge]
)

// Request is what a client asks for.
type Request struct {
	Version int    `json:"v"`
	Op      Op     `json:"op"`
	ID      uint64 `json:"id,omitempty"`
	Export  string `json:"export,omitempty"`
	// Keys are those of a section of the configuration file.
	Keys map[string]string `json:"keys,omitempty"`
	// Clients says what becomes of connections that are in the way: "stay",
	// which "" means, "drain" or "cut".
	Clients string `json:"clients,omitempty"`
	// Seconds bounds the wait for them, and for a merge. 0 means 30.
	Seconds float64 `json:"seconds,omitempty"`
	// All merges what all exports have collected; none is named then.
	All bool `json:"all,omitempty"`
	// Wait has the answer to a merge come when it has ended.
	Wait bool `json:"wait,omitempty"`
}

// Response is the answer to a Request: a result or an error.
type Response struct {
	Version int             `json:"v"`
	Result  json.RawMessage `json:"result,omitempty"`
	Error   *Error          `json:"error,omitempty"`
}

// Error says why a request was not carried out.
type Error struct {
	Code Code   `json:"code"`
	Text string `json:"text"`
}

// Error returns the text.
func (e *Error) Error() string { return e.Text }

// Code tells errors apart for programs.
type Code string

// Codes.
const (
	BadRequest Code = "bad-request" // it cannot be understood
	BadVersion Code = "bad-version" // of the protocol
	NotFound   Code = "not-found"   // no such connection, or export
	Exists     Code = "exists"      // there is an export of that name
	Failed     Code = "failed"      // it could not be done
)

// errorf makes an Error.
func errorf(c Code, format string, args ...any) *Error {
	return &Error{c, fmt.Sprintf(format, args...)}
}

// Status describes a server.
type Status struct {
	Program     string    `json:"program"` // with its version
	PID         int       `json:"pid"`
	Since       time.Time `json:"since"`
	Config      []string  `json:"config"` // files; the first one is the main one
	Exports     int       `json:"exports"`
	Connections int       `json:"connections"`
	Listening   []string  `json:"listening"` // addresses
	// Reload is the last one, nil if there was none.
	Reload *Reload `json:"reload,omitempty"`
	// Busy is since when a reload, or a change, has been under way; nil if none is.
	Busy *time.Time `json:"busy,omitempty"`
	// TransactionLogs are those that are open.
	TransactionLogs []TransactionLog `json:"transactionlogs,omitempty"`
}

// Reload says how the configuration was read again.
type Reload struct {
	At    time.Time `json:"at"`
	Error string    `json:"error,omitempty"` // why it was not taken over
}

// TransactionLog describes a transaction log.
type TransactionLog struct {
	File string `json:"file"`
	Lost uint64 `json:"lost"` // records that its disk was too full, or too slow for
}

// Section is what an export was configured by.
type Section struct {
	Name string `json:"name"`
	// State is that of the export. Where it is pending, the keys are those that are to come.
	State  string `json:"state"`
	Origin string `json:"origin"`
	// Keys are those that have other values than their defaults.
	Keys map[string]string `json:"keys"`
}

// Merge says how far a waitfile is merged.
type Merge struct {
	Export  string `json:"export"`
	State   string `json:"state"`           // collecting, merging or merged
	Waiting int64  `json:"waiting"`         // bytes that are in the waitfile
	Error   string `json:"error,omitempty"` // why the last merge failed
}

// Export describes an export.
type Export struct {
	Name           string `json:"name"`
	State          string `json:"state"` // serving, pending, removed, moving, broken, out of order
	Clients        int    `json:"clients"`
	Size           int64  `json:"size"` // bytes; -1 where each client has a device of its own
	ReadOnly       bool   `json:"readonly"`
	TLS            bool   `json:"tls"` // demanded
	MaxConnections int    `json:"maxconnections"`
	// FlushFailures counts the devices of the export on which a flush has failed, those
	// included that a reload has healed since.
	FlushFailures int64 `json:"flushfailures"`
	// Source is the exportname; Origin where it was configured, a place in a
	// file or "run time".
	Source string `json:"source"`
	Origin string `json:"origin"`
	// Merge is nil where nothing waits, or did, to be merged.
	Merge *Merge `json:"merge,omitempty"`
}

// Connection describes a connection.
type Connection struct {
	ID       uint64    `json:"id"`
	Client   string    `json:"client"`
	Export   string    `json:"export"`
	Phase    string    `json:"phase"` // handshake, transmission or closing
	Since    time.Time `json:"since"`
	TLS      string    `json:"tls"`     // the version, or nothing
	TLSPeer  string    `json:"tlspeer"` // the name in the client's certificate
	Replies  string    `json:"replies"` // simple, structured or extended
	Requests uint64    `json:"requests"`
	Errors   uint64    `json:"errors"`
	Read     uint64    `json:"read"`    // bytes, by the client
	Written  uint64    `json:"written"` // bytes, by the client
	InFlight int       `json:"inflight"`
	// Process is the client's, on a unix socket and where the system tells; else nil.
	Process *Process `json:"process,omitempty"`
}

// Process is who has connected to a unix socket.
type Process struct {
	PID int    `json:"pid"` // 0 where the server cannot see it
	UID uint32 `json:"uid"`
	GID uint32 `json:"gid"`
}

// Changes says what a change did, by the names of exports, and where the server listens
// if a reload has changed that.
type Changes struct {
	Added   []string `json:"added,omitempty"`
	Removed []string `json:"removed,omitempty"`
	Changed []string `json:"changed,omitempty"`
	Pending []string `json:"pending,omitempty"` // until their clients have left
	Healed  []string `json:"healed,omitempty"`
	Kept    []string `json:"kept,omitempty"`

	Listening []string `json:"listening,omitempty"`
}

// parse reads a request. What is wrong with it the error says.
func parse(line []byte) (*Request, *Error) {
	d := json.NewDecoder(bytes.NewReader(line))
	var r Request
	// The version first: a later one may have fields that are not known here.
	var v struct {
		Version int `json:"v"`
	}
	switch err := json.Unmarshal(line, &v); {
	case err != nil:
		return nil, errorf(BadRequest, "the request is no JSON object: %v", err)
	case v.Version != Version:
		return nil, errorf(BadVersion, "the request is of version %d, this server speaks version %d; use the nbd program of the same release", v.Version, Version)
	}
	d.DisallowUnknownFields()
	if err := d.Decode(&r); err != nil {
		return nil, errorf(BadRequest, "the request cannot be understood: %v", err)
	}
	if d.More() {
		return nil, errorf(BadRequest, "there is more than one request on a line")
	}
	return &r, r.check()
}

// how are the values of Request.Clients.
var how = map[string]Clients{"": Stay, "stay": Stay, "drain": Drain, "cut": Cut}

// Clients says what becomes of connections.
type Clients int

// What becomes of connections.
const (
	Stay  Clients = iota // they go on until they end by themselves
	Drain                // they answer what they have read, and end
	Cut                  // they end
)

// String returns the word of a Request.
func (c Clients) String() string { return [...]string{"stay", "drain", "cut"}[c] }

// maxSeconds bounds Request.Seconds.
const maxSeconds = 24 * 60 * 60

// check looks at what belongs together.
func (r *Request) check() *Error {
	clients, ok := how[r.Clients]
	switch {
	case !ok:
		return errorf(BadRequest, "clients is %q; want stay, drain or cut", short(r.Clients))
	case r.Op == OpClose && clients == Stay:
		return errorf(BadRequest, "close needs clients: drain, which answers what was asked, or cut")
	case !(r.Seconds >= 0 && r.Seconds <= maxSeconds):
		return errorf(BadRequest, "seconds is %v; want 0 to %d", r.Seconds, maxSeconds)
	case len(r.Keys) > 0 && r.Op != OpAdd && r.Op != OpChange:
		return errorf(BadRequest, "%q has no keys", short(string(r.Op)))
	case (r.All || r.Wait) && r.Op != OpMerge:
		return errorf(BadRequest, "%q has neither all nor wait", short(string(r.Op)))
	case r.All && r.Export != "":
		return errorf(BadRequest, "merge is of all, and of one export; it can only be one of the two")
	}
	return nil
}

// short bounds text from a peer in an error.
func short(s string) string {
	if len(s) > 80 {
		return s[:80] + "…"
	}
	return s
}

// lines reads lines of at most so many bytes, without their ends.
type lines struct {
	r     io.Reader
	limit int
	buf   []byte
	next  int // buf[next:] was read, and not returned
}

// errTooLong is returned for a line beyond the limit.
var errTooLong = errors.New("the line is too long")

// read returns the next line, which is valid until the next call. At the end it
// returns io.EOF, in the middle of a line io.ErrUnexpectedEOF.
func (l *lines) read() ([]byte, error) {
	from := l.next // where to look for the end
	for {
		if i := bytes.IndexByte(l.buf[from:], '\n'); i >= 0 {
			line := l.buf[l.next : from+i]
			if l.next = from + i + 1; len(line) > l.limit {
				return nil, errTooLong
			}
			return line, nil
		}
		left := copy(l.buf, l.buf[l.next:])
		l.buf, l.next, from = l.buf[:left], 0, left
		if left > l.limit {
			return nil, errTooLong
		}
		if cap(l.buf)-left < 4096 { // memory grows with what has come
			l.buf = append(make([]byte, 0, 2*cap(l.buf)+8192), l.buf...)
		}
		n, err := l.r.Read(l.buf[left:cap(l.buf)])
		l.buf = l.buf[:left+n]
		if n == 0 && err != nil {
			if err == io.EOF && left > 0 {
				err = io.ErrUnexpectedEOF
			}
			return nil, err
		}
	}
}
