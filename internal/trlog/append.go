package trlog

import (
	"time"

	"nbd.example/nbd/proto"
)

// longData is the length from which what is written is not copied, if it can be kept,
// in bytes.
const longData = 32 << 10

// frontSize is room for the settings in front of a record, in bytes.
const frontSize = 2 * proto.RequestSize

// add logs a request, and its reply if it has been answered.
func (l *Log) add(r *proto.Request, data []byte, answered bool, e proto.Errno) {
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
	p := l.room(int(n)*proto.RequestSize + len(data) + proto.SimpleReplySize)
	if p == nil {
		l.lose(records)
		return
	}
	p.b = l.appendSettings(p.b, r, data)
	p.b = append(appendRequest(p.b, r), data...)
	if answered {
		p.b = proto.AppendSimpleReply(p.b, e, r.Cookie)
	}
	l.added(p, records)
}

// reply logs the answer to a request that is in the log.
func (l *Log) reply(cookie uint64, e proto.Errno) {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := l.room(proto.SimpleReplySize)
	if p == nil {
		l.lose(1)
		return
	}
	p.b = l.appendSettings(p.b, nil, nil)
	p.b = proto.AppendSimpleReply(p.b, e, cookie)
	l.added(p, 1)
}

// addLong logs a write of much data, which stays where it is until it is written. It
// reports whether that is so: otherwise the write is lost.
func (l *Log) addLong(r *proto.Request, data []byte, owner interface{ Release() }) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := l.room(proto.RequestSize)
	if p == nil {
		l.lose(1)
		return false
	}
	p.b = appendRequest(l.appendSettings(p.b, r, data), r)
	p.tail, p.owner = data, owner
	p.records++
	l.stats.Records++
	l.seal()
	l.kick()
	return true
}

// room returns the piece that has room for settings and size bytes more, or nil
// if there is none. The caller holds l.mu, which is given up for a while.
func (l *Log) room(size int) *piece {
	size += frontSize
	for {
		if l.closed {
			return nil
		}
		if l.cur != nil {
			if cap(l.cur.b)-len(l.cur.b) >= size {
				return l.cur
			}
			l.seal()
			l.kick()
		}
		if !l.wait() {
			return nil
		}
		if l.cur == nil { // nobody else made one meanwhile
			l.cur = newPiece(size)
			l.cur.data = l.data
		}
	}
}

// wait waits for room in the queue, and reports whether there is some. The
// caller holds l.mu, which is given up for a while.
func (l *Log) wait() bool {
	full := func() bool { return l.queued >= l.cfg.Buffer && !l.closed }
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

// added counts records that were appended to p, and sees to it that they get
// written.
func (l *Log) added(p *piece, records uint64) {
	p.records += records
	l.stats.Records += records
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
