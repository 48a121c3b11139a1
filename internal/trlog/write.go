package trlog

import (
	"io"
	"log/slog"
	"sync"
	"time"
)

// piece is a stretch of a log that is written at once: whole records.
type piece struct {
	b       []byte
	tails   []tail // data that are not in b
	tailed  int    // bytes of memory that they hold
	records uint64
	data    bool // the setting in front of it
	next    File // not nil: from here on the log is in this file
}

// tail is what was written, in its place among the records.
type tail struct {
	at    int // bytes of piece.b that are in front of it
	data  []byte
	owner interface{ Release() } // of data; nil if there is none
}

// Sizes, in bytes.
const (
	// pieceSize is how much of a log is written at once: a long write, and what goes
	// with it.
	pieceSize = 128<<10 + 4<<10
	// smallSize is that of a piece for records whose data are tails.
	smallSize = 4 << 10
	// tailSize is how much tails may hold before they are written.
	tailSize = 256 << 10
)

// pool and smallPool hold pieces with room for pieceSize, and for smallSize.
var pool, smallPool sync.Pool // of *piece

// newPiece returns an empty piece with room for size bytes at least. A small one does for
// records whose data are tails.
func newPiece(size int, small bool) *piece {
	from, class := &pool, pieceSize
	if small && size <= smallSize {
		from, class = &smallPool, smallSize
	}
	if size > class {
		return &piece{b: make([]byte, 0, size)}
	}
	if p, _ := from.Get().(*piece); p != nil {
		return p
	}
	return &piece{b: make([]byte, 0, class)}
}

// attach adds data that follow the last record.
func (p *piece) attach(data []byte, owner interface{ Release() }) {
	p.tails = append(p.tails, tail{len(p.b), data, owner})
	p.tailed += cap(data)
}

// size is how much memory a piece holds, in bytes.
func (p *piece) size() int { return cap(p.b) + p.tailed }

// stretches appends what the piece has, in its order.
func (p *piece) stretches(list [][]byte) [][]byte {
	at := 0
	for _, t := range p.tails {
		list = append(list, p.b[at:t.at], t.data)
		at = t.at
	}
	if at < len(p.b) {
		list = append(list, p.b[at:])
	}
	return list
}

// put gives back a piece, and what it has kept.
func (p *piece) put() {
	for _, t := range p.tails {
		if t.owner != nil {
			t.owner.Release()
		}
	}
	clear(p.tails)
	*p = piece{b: p.b[:0], tails: p.tails[:0]}
	switch cap(p.b) {
	case pieceSize:
		pool.Put(p)
	case smallSize:
		smallPool.Put(p)
	}
}

// seal lets what was gathered be written. The caller holds l.mu.
func (l *Log) seal() {
	if l.cur != nil {
		l.push(l.cur)
		l.tails = len(l.cur.tails) > 0
		l.cur = nil
	}
}

// push puts p into the queue. The caller holds l.mu.
func (l *Log) push(p *piece) {
	l.queue = append(l.queue, p)
	l.queued += p.size()
	l.sealed++
}

// kick sees to it that the queue is written. The caller holds l.mu.
func (l *Log) kick() {
	if !l.writing {
		l.writing = true
		go l.run()
	}
}

// expired lets all that was gathered be written now.
func (l *Log) expired() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.armed, l.due = false, true
	l.kick()
}

// run writes until there is nothing to write.
func (l *Log) run() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		if l.due {
			l.due = false
			l.seal()
		}
		if len(l.queue) == 0 {
			l.writing = false
			return
		}
		p := l.queue[0]
		l.queue[0] = nil
		if l.queue = l.queue[1:]; len(l.queue) == 0 {
			l.queue = nil
		}
		l.mu.Unlock()
		ok := l.w.write(p)
		l.mu.Lock()
		if !ok {
			l.stats.Records -= p.records
			l.stats.Lost += p.records
		}
		l.queued -= p.size()
		l.done++
		p.put()
		if l.stalled && l.queued <= l.cfg.Buffer/2 {
			l.stalled = false
			go l.cfg.Logger.Info("the disk of the transaction log keeps up again", "file", l.cfg.Name, "missing", l.missing)
		}
		l.cond.Broadcast()
	}
}

// quiet is how often a disk that is full, and now and then not quite, is
// complained of at most. The program's own log may be on the same one.
const quiet = time.Minute

// writer writes pieces to the file, by one goroutine at a time.
type writer struct {
	log  *slog.Logger
	name string
	file File

	missing uint64    // records that could not be written since the last that could
	failing bool      // the last piece could not be written
	said    bool      // so it was said
	told    time.Time // when that was said last
	torn    int64     // bytes of half a record at the end of the file
	list    [][]byte  // for write

	mu     sync.Mutex
	latest File // what file is, or will be once the queue is written
}

// expect notes the file that the log goes on in.
func (w *writer) expect(f File) {
	w.mu.Lock()
	w.latest = f
	w.mu.Unlock()
}

func (w *writer) newest() File {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.latest
}

// write writes p, or reports that its records are lost.
func (w *writer) write(p *piece) bool {
	if p.next != nil {
		if err := w.file.Close(); err != nil {
			w.log.Error("closing the old transaction log failed", "file", w.name, "error", err)
		}
		w.file, w.torn = p.next, 0
	}
	err := w.untear()
	if err == nil {
		if w.failing { // a setting may be among what is missing
			err = w.append(appendDataLog(appendLost(nil, w.missing), p.data))
		}
		if err == nil {
			w.list = p.stretches(w.list[:0])
			err = w.append(w.list...)
			clear(w.list)
		}
	}
	if err != nil {
		if undo := w.untear(); undo != nil && !w.failing {
			w.log.Error("half a record cannot be taken from the end of the transaction log", "file", w.name, "error", undo)
		}
		w.missing += p.records
		w.failing = true
		if !w.said && time.Since(w.told) >= quiet {
			w.said, w.told = true, time.Now()
			w.log.Error("the transaction log cannot be written: records are lost until it can be; clients are served on", "file", w.name, "error", err)
		}
		return false
	}
	if w.said {
		w.log.Info("the transaction log can be written again", "file", w.name, "missing", w.missing)
	}
	w.failing, w.said, w.missing, w.torn = false, false, 0, 0
	return true
}

// append writes one after the other. What has been written counts as torn until all of a
// piece is.
func (w *writer) append(list ...[]byte) error {
	n, err := writeAll(w.file, list)
	w.torn += n
	return err
}

// writeEach writes one after the other.
func writeEach(f io.Writer, list [][]byte) (done int64, err error) {
	for _, b := range list {
		n, err := f.Write(b)
		done += int64(n)
		if err == nil && n < len(b) {
			err = io.ErrShortWrite
		}
		if err != nil {
			return done, err
		}
	}
	return done, nil
}

// untear takes half a piece from the end of the file.
func (w *writer) untear() error {
	if w.torn == 0 {
		return nil
	}
	end, err := w.file.Seek(0, io.SeekEnd)
	if err == nil {
		err = w.file.Truncate(max(end-w.torn, 0))
	}
	if err == nil {
		_, err = w.file.Seek(0, io.SeekEnd)
	}
	if err == nil {
		w.torn = 0
	}
	return err
}
