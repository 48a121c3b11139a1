package trlog

import (
	"bytes"
	"time"

	"nbd.example/nbd/proto"
)

// place is where what is written is until it is in the file.
type place int

const (
	copied place = iota // among the records
	kept                // where it was: it is given back then
	cloned              // in memory of its own, and of its size
)

// longData is the length from which data are kept, if they can be, in bytes.
const longData = 32 << 10

// place decides for one write. What is kept may take much more memory than it has data,
// and so may a piece with few long records: where much waits, room is worth a copy.
func (l *Log) place(data []byte, owned bool) place {
	tight := l.held() >= l.cfg.Buffer/8
	switch {
	case owned && len(data) >= longData && (!tight || cap(data)-len(data) <= len(data)/4):
		return kept
	case tight && pieceSize%(len(data)+2*frontSize) > pieceSize/8: // what is left of a piece
		return cloned
	}
	return copied
}

// frontSize is room for the settings in front of a record, in bytes.
const frontSize = 2 * proto.RequestSize

// add logs a request, and its reply if it has been answered. It reports whether it keeps
// the data, which it may if there is an owner.
func (l *Log) add(r *proto.Request, data []byte, owner interface{ Release() }, answered bool, e proto.Errno) bool {
	if uint64(len(data)) != r.Length || r.Command != proto.CmdWrite {
		data = nil
	}
	n := pieces(r)
	if n > maxPieces || answered && e != proto.OK && n > 1 {
		// A length that was refused, or beyond all disks, is clipped.
		n, r.Length = 1, maxPiece
	}
	records := n
	if answered {
		records++
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	where, size := l.place(data, owner != nil), int(n)*proto.RequestSize+proto.SimpleReplySize
	if where == copied {
		size += len(data)
	}
	p := l.room(size, where != copied)
	if p == nil {
		l.lose(records)
		return false
	}
	p.b = appendRequest(l.appendSettings(p.b, r, data), r)
	switch where {
	case copied:
		p.b = append(p.b, data...)
	case kept:
		p.attach(data, owner)
	case cloned:
		p.attach(bytes.Clone(data), nil)
	}
	if answered {
		p.b = proto.AppendSimpleReply(p.b, e, r.Cookie)
	}
	l.added(p, records)
	return where == kept
}

// reply logs the answer to a request that is in the log.
func (l *Log) reply(cookie uint64, e proto.Errno) {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := l.room(proto.SimpleReplySize, false)
	if p == nil {
		l.lose(1)
		return
	}
	p.b = l.appendSettings(p.b, nil, nil)
	p.b = proto.AppendSimpleReply(p.b, e, cookie)
	l.added(p, 1)
}

// room returns the piece that has room for settings and size bytes more, or nil
// if there is none. More memory than that of the piece is only to be taken if there is
// room for it. The caller holds l.mu, which is given up for a while.
func (l *Log) room(size int, more bool) *piece {
	size += frontSize
	for !l.closed {
		if l.cur != nil && cap(l.cur.b)-len(l.cur.b) < size {
			l.seal()
			l.kick()
		}
		if l.cur != nil && !more {
			return l.cur
		}
		if !l.wait() {
			return nil
		}
		if l.cur == nil { // nobody else made one meanwhile
			l.cur = newPiece(size, more || l.tails)
			l.cur.data = l.data
		}
		if cap(l.cur.b)-len(l.cur.b) >= size {
			return l.cur
		}
	}
	return nil
}

// held is how much memory there is in what was not written yet, in bytes. The caller
// holds l.mu.
func (l *Log) held() int {
	if l.cur == nil {
		return l.queued
	}
	return l.queued + l.cur.size()
}

// wait waits for room in memory, and reports whether there is some. The
// caller holds l.mu, which is given up for a while.
func (l *Log) wait() bool {
	full := func() bool { return l.held() >= l.cfg.Buffer && !l.closed }
	if !full() || l.stalled {
		return !l.closed && !l.stalled
	}
	limit := time.Now().Add(l.cfg.Patience)
	t := time.AfterFunc(l.cfg.Patience, func() {
		l.mu.Lock()
		l.cond.Broadcast()
		l.mu.Unlock()
	})
	defer t.Stop()
	for full() && !l.stalled {
		if !time.Now().Before(limit) {
			l.stalled = true
			go l.cfg.Logger.Error("the disk of the transaction log does not keep up: records are lost until it does", "file", l.cfg.Name)
			break
		}
		l.seal()
		l.kick()
		l.cond.Wait()
	}
	return !l.closed && !l.stalled
}

// appendSettings appends what must stand in front of r, which is nil for a reply.
func (l *Log) appendSettings(b []byte, r *proto.Request, data []byte) []byte {
	if l.missing > 0 {
		b = appendLost(b, l.missing)
		l.missing = 0
	}
	if r != nil && r.Command == proto.CmdWrite && r.Length > 0 && (data != nil) != l.data {
		l.data = data != nil
		b = appendDataLog(b, l.data)
	}
	return b
}

// added counts records that were appended to p, which is l.cur, and sees to it that
// they get written.
func (l *Log) added(p *piece, records uint64) {
	p.records += records
	l.stats.Records += records
	if p.tailed >= max(tailSize, 8*cap(p.b)) {
		l.seal()
		l.kick()
		return
	}
	if !l.armed {
		l.armed = true
		l.timer.Reset(l.cfg.Delay)
	}
}

// lose counts records that are not logged.
func (l *Log) lose(records uint64) {
	l.missing += records
	l.stats.Lost += records
}
