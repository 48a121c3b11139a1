// Package replay tells what may be on a disk after a power cut, by the transaction log
// of the server that had it (package trlog).
//
// A log with data has all changes in their order, and the moments at which the server
// promised that some are stable: when it answered a flush, every change that it had
// answered before the flush began; when it answered a change with FUA, that one. At a
// power cut between two records, what was promised by then is there, and of everything
// else that had begun any part may be there or not.
//
// A [History] is read once and gives an image for each cut.
package replay

import (
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"

	"nbd.example/nbd/internal/trlog"
	"nbd.example/nbd/proto"
)

// Block is the unit in which a change may be there in part, in bytes: what file systems
// take a disk to write whole, a sector of a modern disk.
const Block = 4096

// never is the number of a record that does not come.
const never = math.MaxInt

// History is what a log tells. Moments are numbers of records, from 0 on; a cut at n is one
// right behind record n.
type History struct {
	log     io.ReaderAt
	changes []change // in the order of the log
	// Promises are the moments at which something became stable: answers to flushes, and
	// to changes with FUA.
	Promises []int
	Flushes  int // of these, those that answered a flush
	// Marks are the requests that the caller's function has chosen, in the order of
	// the log.
	Marks []Mark
}

// Mark is a request that means something to the caller.
type Mark struct {
	At      int
	Request proto.Request
}

// change is a write, or, without data, a trim or zeroes.
type change struct {
	off, n int64 // bytes
	data   int64 // where the data are in the log; 0 for zeroes
	begun  int
	stable int // the moment of the promise
	fua    bool
}

// flush is one that was not answered yet.
type flush struct{ covers []int }

// reader reads a History.
type reader struct {
	h        *History
	n        int            // the number of the record
	open     map[uint64]int // changes that have no answer yet, by cookie
	flushes  map[uint64]flush
	answered []int // changes that have an answer, and no promise
}

// Read reads a log of size bytes, which must be complete. Requests for which mark returns
// true are no part of what happens to the disk. The log is read again for each image.
func Read(log io.ReaderAt, size int64, mark func(*proto.Request) bool) (*History, error) {
	r := reader{h: &History{log: log}, open: map[uint64]int{}, flushes: map[uint64]flush{}}
	records := trlog.NewReader(io.NewSectionReader(log, 0, size))
	marks := map[uint64]bool{}
	for ; ; r.n++ {
		rec, err := records.Next()
		switch {
		case err == io.EOF:
			return r.h, nil
		case err != nil:
			return nil, fmt.Errorf("replay: %w", err)
		case rec.Kind == trlog.Lost || rec.Kind == trlog.Garbage:
			return nil, fmt.Errorf("replay: at %d of the log: %w", rec.At, trlog.ErrIncomplete)
		case rec.Kind == trlog.Request && mark(&rec.Request):
			r.h.Marks = append(r.h.Marks, Mark{r.n, rec.Request})
			marks[rec.Request.Cookie] = true
		case rec.Kind == trlog.Request:
			err = r.request(&rec, records.Offset())
		case rec.Kind == trlog.Reply && marks[rec.Reply.Cookie]:
			delete(marks, rec.Reply.Cookie)
		case rec.Kind == trlog.Reply:
			err = r.reply(&rec.Reply)
		}
		if err != nil {
			return nil, fmt.Errorf("replay: at %d of the log: %w", rec.At, err)
		}
	}
}

// request notes a request, whose data, if it has some, follow in the log at data.
func (r *reader) request(rec *trlog.Record, data int64) error {
	q := &rec.Request
	switch q.Command {
	case proto.CmdWrite:
		if !rec.Data {
			return trlog.ErrNoData
		}
	case proto.CmdTrim, proto.CmdWriteZeroes:
		data = 0
	case proto.CmdFlush:
		r.flushes[q.Cookie] = flush{append([]int(nil), r.answered...)}
		return nil
	default:
		return nil
	}
	if _, twice := r.open[q.Cookie]; twice {
		return fmt.Errorf("two requests with the cookie %#x are under way", q.Cookie)
	}
	r.open[q.Cookie] = len(r.h.changes)
	r.h.changes = append(r.h.changes, change{
		off: int64(q.Offset), n: int64(q.Length), data: data,
		begun: r.n, stable: never, fua: q.Flags&proto.CmdFlagFUA != 0,
	})
	return nil
}

// reply notes an answer.
func (r *reader) reply(a *proto.SimpleReply) error {
	if f, ok := r.flushes[a.Cookie]; ok {
		delete(r.flushes, a.Cookie)
		if a.Error != proto.OK {
			return errors.New("a flush has failed")
		}
		for _, i := range f.covers {
			r.promise(i)
		}
		r.h.Promises = append(r.h.Promises, r.n)
		r.h.Flushes++
		r.forget()
		return nil
	}
	i, ok := r.open[a.Cookie]
	if !ok {
		return nil // of a read, or the like
	}
	delete(r.open, a.Cookie)
	switch {
	case a.Error != proto.OK:
		// It may have been made in part. It stays without a promise.
	case r.h.changes[i].fua:
		r.promise(i)
		r.h.Promises = append(r.h.Promises, r.n)
	default:
		r.answered = append(r.answered, i)
	}
	return nil
}

// promise notes that a change is stable from now on.
func (r *reader) promise(i int) {
	if c := &r.h.changes[i]; c.stable == never {
		c.stable = r.n
	}
}

// forget drops what has a promise from the list of what has none.
func (r *reader) forget() {
	left := r.answered[:0]
	for _, i := range r.answered {
		if r.h.changes[i].stable == never {
			left = append(left, i)
		}
	}
	r.answered = left
}

// Disk is where an image is made.
type Disk interface {
	io.WriterAt
	// Zero makes n bytes at off zero.
	Zero(off, n int64) error
}

// Image writes to d, which holds what there was when the log began, what may be on the
// disk after a power cut behind record at. Of what was not promised, rnd chooses: all of a change, nothing of it, or some
// of its blocks; with a nil rnd, nothing.
func (h *History) Image(d Disk, at int, rnd *rand.Rand) error {
	for i := range h.changes {
		c := &h.changes[i]
		if c.begun > at {
			break
		}
		var err error
		switch {
		case c.stable <= at:
			err = h.apply(d, c, 0, c.n)
		case rnd != nil:
			err = h.chance(d, c, rnd)
		}
		if err != nil {
			return fmt.Errorf("replay: %w", err)
		}
	}
	return nil
}

// chance makes a change, or not, or in part.
func (h *History) chance(d Disk, c *change, rnd *rand.Rand) error {
	switch rnd.IntN(3) {
	case 0:
		return nil
	case 1:
		return h.apply(d, c, 0, c.n)
	}
	for lo := int64(0); lo < c.n; {
		hi := min((c.off+lo)/Block*Block+Block-c.off, c.n)
		if rnd.IntN(2) == 0 {
			if err := h.apply(d, c, lo, hi); err != nil {
				return err
			}
		}
		lo = hi
	}
	return nil
}

// apply makes the bytes of a change from lo to hi.
func (h *History) apply(d Disk, c *change, lo, hi int64) error {
	if c.data == 0 {
		return d.Zero(c.off+lo, hi-lo)
	}
	_, err := io.CopyN(io.NewOffsetWriter(d, c.off+lo), io.NewSectionReader(h.log, c.data+lo, hi-lo), hi-lo)
	return err
}
