package trlog

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math"
	"os"
	"sync"
	"time"

	"nbd.example/nbd/proto"
)

// File is where a log is written to. An *os.File is one.
type File interface {
	io.ReadWriteSeeker
	io.Closer
	Stat() (fs.FileInfo, error)
	Truncate(size int64) error
}

// OpenFlags are the flags that a log's file is opened with.
const OpenFlags = os.O_RDWR | os.O_CREATE | appending

// OpenMode is the mode of a log that is created: it may hold what others must
// not read.
const OpenMode fs.FileMode = 0o600

// Config says how to write a log.
type Config struct {
	// Name of the file, for messages.
	Name string
	// Open opens the file with [OpenFlags]. It is called at once, and by [Log.Reopen].
	Open func() (File, error)
	// SetAside renames the file, which is closed, and returns its new name. Nil cannot do that.
	SetAside func() (string, error)
	// Data says that the file begins with SET_DATALOG, so that what is written
	// follows writes. Each [Tap] has a word of its own in this; where they differ,
	// settings stand between the records.
	Data bool
	// Buffer bounds the memory that is held until it is written, with one request more, and
	// what was being gathered, in bytes. 0 means 8 MiB.
	Buffer int
	// Delay is how long records are gathered. 0 means 200 ms.
	Delay time.Duration
	// Patience is how long a request waits for a disk that does not take what is
	// gathered. 0 means 250 ms.
	Patience time.Duration
	// Logger is told when the log cannot be written, and when it can again. Nil
	// discards that.
	Logger *slog.Logger
}

// Log writes a transaction log. Its methods may be called concurrently.
type Log struct {
	cfg Config

	mu      sync.Mutex
	cond    sync.Cond // room in the queue, or something has been written
	cur     *piece    // being filled
	queue   []*piece  // to be written
	queued  int       // bytes of queue, and of what is being written
	sealed  uint64    // pieces that were ever in queue
	done    uint64    // of these, those that were written, or lost
	tails   bool      // the last piece had some: long data come
	data    bool      // the setting at the end of cur
	missing uint64    // records that were lost since the last one in cur
	stalled bool      // the disk does not move: nobody waits for it
	writing bool      // there is a goroutine that writes
	due     bool      // it takes cur too
	armed   bool      // timer will set due
	closed  bool
	timer   *time.Timer
	ends    time.Duration // closePatience
	stats   Stats

	w writer // belongs to the goroutine that writes
}

// Stats is what a log has done.
type Stats struct {
	Records uint64 // written, or on their way
	Lost    uint64 // records that are missing, because the disk was full or too slow
}

// Open opens a log, and continues what is in the file. The caller must Close it.
func Open(cfg Config) (*Log, error) {
	cfg.Buffer = cmp.Or(cfg.Buffer, 8<<20)
	cfg.Delay = cmp.Or(cfg.Delay, 200*time.Millisecond)
	cfg.Patience = cmp.Or(cfg.Patience, 250*time.Millisecond)
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	l := &Log{cfg: cfg, data: cfg.Data, ends: closePatience}
	l.cond.L = &l.mu
	l.timer = time.AfterFunc(time.Hour, l.expired)
	l.timer.Stop()
	l.w.log, l.w.name = cfg.Logger, cfg.Name
	f, fresh, err := open(&cfg, true)
	if err != nil {
		return nil, err
	}
	l.w.file, l.w.latest = f, f
	if cfg.Data || !fresh {
		l.cur = newPiece(0, true)
		l.cur.data = cfg.Data
		l.cur.b = appendDataLog(l.cur.b, cfg.Data)
		l.Flush()
	}
	return l, nil
}

// open opens the file and looks at what is in it. It reports whether there is nothing in it.
// To look at one that is long and was not closed in order takes long, and somebody waits for
// the server: it is set aside. Where that cannot be it is read if patient is true.
func open(cfg *Config, patient bool) (f File, fresh bool, err error) {
	f, fresh, err = begin(cfg, endLength)
	if !errors.Is(err, errLong) {
		return f, fresh, err
	}
	aside, failed := "", errors.New("nothing can be renamed here")
	if cfg.SetAside != nil {
		aside, failed = cfg.SetAside()
	}
	switch {
	case failed == nil:
		cfg.Logger.Warn("the transaction log was not closed in order, and is too long to be looked through for that; it is kept as it is under another name, and a new one begins", "file", cfg.Name, "kept", aside)
	case !patient:
		return nil, false, fmt.Errorf("%w: %w", err, failed)
	default:
		cfg.Logger.Warn("the transaction log was not closed in order, and is read from its beginning, which takes long: it cannot be renamed, to begin a new one", "file", cfg.Name, "error", failed)
		return begin(cfg, math.MaxInt64)
	}
	return begin(cfg, endLength)
}

// begin opens the file and looks at what is in it, but reads not much more than so many
// bytes.
func begin(cfg *Config, most int64) (f File, fresh bool, err error) {
	if f, err = cfg.Open(); err != nil {
		return nil, false, fmt.Errorf("transaction log: %w", err)
	}
	fresh, err = repair(f, cfg, most)
	if err == nil && !fresh {
		_, err = f.Seek(0, io.SeekEnd) // for systems where OpenFlags does not see to that
	}
	if err != nil {
		f.Close()
		return nil, false, fmt.Errorf("transaction log %s: %w", cfg.Name, err)
	}
	return f, fresh, nil
}

// errNoLog is returned for a file that somebody may need.
var errNoLog = errors.New("the file is no transaction log; remove it, or name another one")

// errLong is returned for a file that would have to be read in full.
var errLong = errors.New("the file that is there now is long and was not closed in order, and is not read while clients wait: rename or remove it, or restart the server")

// repair prepares a log for being continued: half a record at its end is cut off. It fails
// if it had to read more than so many bytes for that.
func repair(f File, cfg *Config, most int64) (fresh bool, err error) {
	info, err := f.Stat()
	if err != nil {
		return false, err
	}
	if !info.Mode().IsRegular() || info.Size() == 0 {
		return true, nil
	}
	if ended, err := marked(f, info.Size()); ended || err != nil {
		return false, err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return false, err
	}
	r, last := NewReader(f), int64(0)
	if magic, _ := r.r.Peek(4); len(magic) == 4 && recordSize(binary.BigEndian.Uint32(magic)) == 0 {
		return false, errNoLog // without looking for records in all of it
	}
	if info.Size() > most {
		return false, errLong
	}
	for {
		rec, err := r.Next()
		switch {
		case err == io.EOF:
			return false, nil
		case errors.Is(err, ErrTruncated):
			whole := r.at
			if r.left > 0 { // in the data of the last one
				whole = last
			}
			cfg.Logger.Warn("the transaction log ended in the middle of a record, which was cut off", "file", cfg.Name, "bytes", info.Size()-whole)
			return whole == 0, f.Truncate(whole)
		case err != nil:
			return false, err
		}
		last = rec.At
	}
}

// marked reports whether a log was closed in order, and says so.
func marked(f File, size int64) (bool, error) {
	if size < endLength {
		return false, nil
	}
	if _, err := f.Seek(size-proto.RequestSize, io.SeekStart); err != nil {
		return false, err
	}
	var end [proto.RequestSize]byte
	if _, err := io.ReadFull(f, end[:]); err != nil {
		return false, err
	}
	for _, on := range []uint32{0, 1} {
		if bytes.Equal(end[:], appendSetting(nil, settingDataLog, cookieEnd, fromReference, on)) {
			return true, nil
		}
	}
	return false, nil
}

// mark appends the mark of a long log that is closed in order.
func (w *writer) mark(on bool) {
	end, err := w.file.Seek(0, io.SeekEnd)
	if err != nil || end < endLength || w.failing {
		return // whoever continues the log reads it
	}
	value := uint32(0)
	if on {
		value = 1
	}
	if w.append(appendSetting(nil, settingDataLog, cookieEnd, fromReference, value)) != nil {
		w.untear()
	}
}

// Tap returns what tells the log of requests, with what is written if data is
// true.
func (l *Log) Tap(data bool) *Tap { return &Tap{l, data} }

// Stats returns what the log has done.
func (l *Log) Stats() Stats {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.stats
}

// Flush returns when all records of before the call were written, or lost.
func (l *Log) Flush() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.seal()
	for target := l.sealed; l.done < target; {
		l.kick()
		l.cond.Wait()
	}
}

// Reopen opens the file anew, after somebody has renamed or removed it: records
// from now on go to the new one. Where the file is the same it does nothing. If
// it cannot be opened, the log goes on as it was; so it does if there is a long one that was
// not closed in order, and cannot be set aside. It takes as long as the disk takes.
func (l *Log) Reopen() error {
	same, err := l.inPlace()
	if same || err != nil {
		return err
	}
	f, fresh, err := open(&l.cfg, false)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return f.Close()
	}
	l.seal()
	l.w.expect(f)
	p := newPiece(0, true)
	p.next, p.data = f, l.data
	if l.data || !fresh {
		p.b = appendDataLog(p.b, l.data)
	}
	l.push(p)
	l.kick()
	return nil
}

// inPlace reports whether the name of the log still stands for the file that is
// written. It must not look into that file, which may change meanwhile.
func (l *Log) inPlace() (bool, error) {
	f, err := l.cfg.Open()
	if err != nil {
		return false, fmt.Errorf("transaction log: %w", err)
	}
	defer f.Close()
	there, err := f.Stat()
	if err != nil {
		return false, fmt.Errorf("transaction log %s: %w", l.cfg.Name, err)
	}
	here, err := l.w.newest().Stat()
	return err == nil && os.SameFile(here, there), nil
}

// closePatience bounds the wait for the disk at the end.
const closePatience = 5 * time.Second

// Close writes what is gathered and closes the file. A disk that does not take
// it within a few seconds is not waited for.
func (l *Log) Close() error {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return nil
	}
	l.closed = true
	l.mu.Unlock()
	l.timer.Stop()
	done := make(chan error, 1)
	go func() {
		l.Flush()
		l.w.mark(l.data)
		done <- l.w.file.Close()
	}()
	select {
	case err := <-done:
		if n := l.Stats().Lost; n > 0 {
			l.cfg.Logger.Warn("the transaction log is incomplete", "file", l.cfg.Name, "missing", n)
		}
		return err
	case <-time.After(l.ends):
		return fmt.Errorf("transaction log %s: the disk does not take the last records", l.cfg.Name)
	}
}

// Tap is what the engine tells requests to. It has the methods of
// transmission.Tap.
type Tap struct {
	l    *Log
	data bool
}

// Payloads reports whether the log has what is written.
func (t *Tap) Payloads() bool { return t.data }

// Begun logs a request. A long payload with an owner is kept until it is written.
func (t *Tap) Begun(r proto.Request, payload []byte, owner interface{ Release() }) (kept bool) {
	kept = t.l.add(&r, payload, owner, false, 0)
	if r.Command == proto.CmdDisc {
		t.l.expired()
	}
	return kept
}

// Ended logs a reply.
func (t *Tap) Ended(cookie uint64, e proto.Errno) { t.l.reply(cookie, e) }

// Answered logs a request and its reply.
func (t *Tap) Answered(r proto.Request, payload []byte, e proto.Errno) {
	t.l.add(&r, payload, nil, true, e)
}
