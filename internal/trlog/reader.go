package trlog

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"nbd.example/nbd/proto"
)

// ErrTruncated is returned for a log that ends in the middle of a record, as one
// does whose server crashed, or is still writing.
var ErrTruncated = errors.New("the log ends in the middle of a record")

// Reader reads the records of a log. It trusts nothing that it reads.
type Reader struct {
	r    *bufio.Reader
	at   int64  // of the next byte
	data bool   // what was written follows writes
	left uint64 // bytes of the last record's data that are still to be read
}

// NewReader returns a Reader of a log from its beginning.
func NewReader(r io.Reader) *Reader { return &Reader{r: bufio.NewReaderSize(r, 64<<10)} }

// Next returns the next record, and passes over what is left of the data of the
// one before. At the end of the log it returns io.EOF, or ErrTruncated.
func (r *Reader) Next() (Record, error) {
	if err := r.skip(); err != nil {
		return Record{}, err
	}
	rec := Record{At: r.at}
	magic, err := r.r.Peek(4)
	if len(magic) < 4 {
		return rec, r.end(len(magic), err)
	}
	size := recordSize(binary.BigEndian.Uint32(magic))
	if size == 0 {
		return r.garbage()
	}
	b, err := r.r.Peek(size)
	if len(b) < size {
		return rec, r.end(len(b), err)
	}
	r.parse(b, &rec)
	r.discard(size)
	return rec, nil
}

// end explains why there are only n bytes of a record.
func (r *Reader) end(n int, err error) error {
	switch {
	case err != io.EOF:
		return fmt.Errorf("read at %d: %w", r.at, err)
	case n == 0:
		return io.EOF
	}
	return fmt.Errorf("at %d: %w", r.at, ErrTruncated)
}

// recordSize returns the length of the record that a magic number begins, 0 if
// it begins none.
func recordSize(magic uint32) int {
	switch magic {
	case proto.MagicRequest, magicSetting:
		return proto.RequestSize
	case proto.MagicSimpleReply:
		return proto.SimpleReplySize
	case proto.MagicStructuredReply:
		return proto.StructuredReplySize
	}
	return 0
}

func (r *Reader) parse(b []byte, rec *Record) {
	switch binary.BigEndian.Uint32(b) {
	case proto.MagicRequest:
		rec.Kind = Request
		proto.ParseRequest(b, &rec.Request)
		if rec.Data = r.data && rec.Request.Command == proto.CmdWrite; rec.Data {
			r.left = rec.Request.Length
		}
	case proto.MagicSimpleReply:
		rec.Kind = Reply
		proto.ParseSimpleReply(b, &rec.Reply)
	case proto.MagicStructuredReply:
		rec.Kind = Chunk
		proto.ParseChunk(b, &rec.Chunk)
	default:
		proto.ParseRequest(b, &rec.Request) // but for the magic number it is one
		r.setting(rec)
	}
}

// setting finds out what a setting means.
func (r *Reader) setting(rec *Record) {
	q := &rec.Request
	typ := uint32(q.Flags)<<16 | uint32(q.Command)
	switch {
	case q.Offset == fromReference && typ == settingDataLog:
		rec.Kind, rec.Data = Setting, q.Length != 0
		r.data = rec.Data
	case q.Offset == fromHere && typ == settingLost:
		rec.Kind, rec.Count = Lost, q.Cookie
	default:
		rec.Kind = Unknown
	}
}

// garbage passes over bytes up to what may be a record.
func (r *Reader) garbage() (Record, error) {
	rec := Record{Kind: Garbage, At: r.at}
	for {
		b, err := r.r.Peek(4)
		switch {
		case len(b) == 4 && recordSize(binary.BigEndian.Uint32(b)) > 0:
			return rec, nil
		case len(b) == 4:
			r.discard(1)
			rec.Count++
			continue
		case err != io.EOF:
			return rec, fmt.Errorf("read at %d: %w", r.at, err)
		}
		r.discard(len(b))
		rec.Count += uint64(len(b))
		return rec, nil
	}
}

// discard passes over n bytes that were peeked at.
func (r *Reader) discard(n int) {
	r.r.Discard(n)
	r.at += int64(n)
}

// Read reads the data of the record that Next returned last. Behind them it
// returns io.EOF; if the log ends before, ErrTruncated.
func (r *Reader) Read(p []byte) (int, error) {
	if r.left == 0 {
		return 0, io.EOF
	}
	n, err := r.r.Read(p[:min(uint64(len(p)), r.left)])
	r.left -= uint64(n)
	r.at += int64(n)
	if err == io.EOF {
		err = fmt.Errorf("at %d, in the data of a write: %w", r.at, ErrTruncated)
	}
	return n, err
}

// skip passes over what is left of the data.
func (r *Reader) skip() error {
	for r.left > 0 {
		n, err := r.r.Discard(int(min(r.left, 1<<30)))
		r.left -= uint64(n)
		r.at += int64(n)
		if err == io.EOF {
			return fmt.Errorf("at %d, in the data of a write: %w", r.at, ErrTruncated)
		}
		if err != nil {
			return fmt.Errorf("read at %d: %w", r.at, err)
		}
	}
	return nil
}

// Offset returns how much of the log has been read, in bytes.
func (r *Reader) Offset() int64 { return r.at }

// refused reports whether the next record says that the request with that cookie
// has failed. All that was refused without being tried, and much of the rest, has
// its reply right behind it.
func (r *Reader) refused(cookie uint64) bool {
	b, _ := r.r.Peek(proto.SimpleReplySize)
	var reply proto.SimpleReply
	return len(b) == proto.SimpleReplySize && proto.ParseSimpleReply(b, &reply) && reply.Cookie == cookie && reply.Error != proto.OK
}
