package transmission

import (
	"sync"
	"sync/atomic"

	"nbd.example/nbd/internal/ranges"
	"nbd.example/nbd/proto"
)

// request is one request on its way through a worker, or one change on its way
// past them.
type request struct {
	proto.Request
	c       *conn
	payload *buffer      // of a write, or the filter of a block status request
	done    uint64       // bytes of a write that are written already; payload holds the rest
	held    int          // bytes of the connection's held that its answer takes at most
	entry   ranges.Entry // of a change
	ordered bool         // entry is in the group's queue
	// missing counts what must happen before a worker may take the request: its
	// payload must be there, and older changes that it overlaps must have ended.
	missing atomic.Int32
	// void says that the payload never came: nothing is to be done, or answered.
	// Who has had no answer sends it again; an error would be the last word.
	void   bool
	answer answer
	next   *request // in a list
}

var requests sync.Pool // of *request

// newRequest takes over the answer to the reader's last request.
func newRequest(c *conn, h *proto.Request) *request {
	r, _ := requests.Get().(*request)
	if r == nil {
		r = new(request)
		r.entry.Unblocked = r.arrived
	}
	r.Request, r.c = *h, c
	r.missing.Store(1)
	c.owed = false
	return r
}

// order puts a change behind the older ones that it overlaps: then their end is
// missing too.
func (r *request) order() {
	r.ordered = true
	r.c.changes.Add(1)
	r.missing.Store(2)
	if r.c.group.changes.Add(&r.entry, int64(r.Offset), int64(r.Length)) {
		r.missing.Add(-1)
	}
}

// arrived is called once for each thing that was missing.
func (r *request) arrived() {
	switch {
	case r.missing.Add(-1) > 0:
	case r.held > 0:
		r.c.postpone(r)
	default:
		r.c.enqueue(r)
	}
}

// end lets younger changes begin, and gives the payload back.
func (r *request) end() {
	if r.ordered {
		r.c.group.changes.Remove(&r.entry)
		r.ordered = false
		r.c.changes.Add(-1)
		r.c.wake()
	}
	r.payload.put()
	r.payload = nil
}

// free gives r back after its end.
func (r *request) free() {
	r.c, r.next, r.held, r.done, r.void = nil, nil, 0, 0, false
	requests.Put(r)
}

// changes reports whether a command changes the device.
func changes(c proto.Command) bool {
	return c == proto.CmdWrite || c == proto.CmdTrim || c == proto.CmdWriteZeroes
}

// list is a first-in, first-out list of requests.
type list struct{ head, tail *request }

func (l *list) push(r *request) {
	r.next = nil
	if l.tail == nil {
		l.head = r
	} else {
		l.tail.next = r
	}
	l.tail = r
}

func (l *list) pop() *request {
	r := l.head
	if r != nil {
		if l.head = r.next; l.head == nil {
			l.tail = nil
		}
		r.next = nil
	}
	return r
}
