package trlog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"

	"nbd.example/nbd/block"
	"nbd.example/nbd/proto"
)

// Errors of Play, for logs that cannot be played to their end.
var (
	// ErrNoData is returned for a write of which the log has no data.
	ErrNoData = errors.New("the log has no data of this write; they are logged with datalog = true")
	// ErrIncomplete is returned where records are missing.
	ErrIncomplete = errors.New("records are missing here")
)

// maxData bounds what one record may write, in bytes: as much as any server takes.
const maxData = 256 << 20

// PlayConfig says how to play a log.
type PlayConfig struct {
	// Blocks is after how many blocks of BlockSize bytes to stop: those are counted that
	// writes, trims and zeroes change, and a change that goes on beyond is made
	// in part. 0 means never.
	Blocks uint64
	// BlockSize in bytes is what Blocks counts. 0 means 512.
	BlockSize uint64
	// Flush makes what was changed stable where a client of the log did.
	// Otherwise it is once, at the end.
	Flush bool
	// Force goes on where records are missing, or bytes are no records.
	Force bool
	// Each is called before each change is made. Nil if nobody wants to know.
	Each func(*Record)
}

// Played is what Play has done.
type Played struct {
	Changes uint64 `json:"changes"` // writes, trims, zeroes
	Blocks  uint64 `json:"blocks"`
	Bytes   uint64 `json:"bytes"`
	Flushes uint64 `json:"flushes"`
	// Refused changes were passed over: the server had not made them.
	Refused uint64 `json:"refused"`
	// NotTrimmed counts trims that the device does not offer. A trim promises nothing.
	NotTrimmed uint64 `json:"nottrimmed"`
	// Missing counts records that the log lacks, and that Force passed over.
	Missing uint64 `json:"missing"`
	// Stopped says that the limit was reached.
	Stopped bool `json:"stopped"`
}

// Play makes the changes that a log records on dev, in its order. A log that
// ends in the middle of a record is played up to there, and the error is
// ErrTruncated.
func Play(ctx context.Context, dev *block.Device, log io.Reader, cfg PlayConfig) (Played, error) {
	if cfg.BlockSize == 0 {
		cfg.BlockSize = 512
	}
	p := player{dev: dev, r: NewReader(log), cfg: cfg}
	err := p.play(ctx)
	if dev.Caps().Flush != block.None && p.done.Changes > 0 {
		if failed := dev.Flush(ctx); failed != nil {
			err = errors.Join(err, fmt.Errorf("flush at the end: %w", failed))
		}
	}
	return p.done, err
}

type player struct {
	dev  *block.Device
	r    *Reader
	cfg  PlayConfig
	buf  bytes.Buffer
	done Played
}

func (p *player) play(ctx context.Context) error {
	for !p.done.Stopped {
		rec, err := p.r.Next()
		if err == io.EOF {
			return nil
		}
		if err == nil {
			err = p.record(ctx, &rec)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (p *player) record(ctx context.Context, rec *Record) error {
	switch rec.Kind {
	case Lost, Garbage:
		if !p.cfg.Force {
			return fmt.Errorf("at %d: %w", rec.At, ErrIncomplete)
		}
		p.done.Missing += max(rec.Count, 1)
	case Request:
		if err := p.request(ctx, rec); err != nil {
			q := &rec.Request
			return fmt.Errorf("at %d, %s of %d bytes at %d: %w", rec.At, q.Command, q.Length, q.Offset, err)
		}
	}
	return nil
}

// request makes one request again.
func (p *player) request(ctx context.Context, rec *Record) error {
	q := &rec.Request
	switch q.Command {
	case proto.CmdFlush:
		if !p.cfg.Flush || p.dev.Caps().Flush == block.None {
			return nil
		}
		p.done.Flushes++
		return p.dev.Flush(ctx)
	case proto.CmdWrite, proto.CmdTrim, proto.CmdWriteZeroes:
	default:
		return nil
	}
	if err := p.read(rec); err != nil {
		return err
	}
	if p.r.refused(q.Cookie) {
		p.done.Refused++
		return nil
	}
	if q.Command == proto.CmdWrite && !rec.Data && q.Length > 0 {
		return ErrNoData
	}
	n := p.limit(q.Length)
	if p.cfg.Each != nil {
		p.cfg.Each(rec)
	}
	p.done.Changes++
	p.done.Bytes += n
	return p.change(ctx, q, int64(n))
}

// read reads the data of a write into p.buf.
func (p *player) read(rec *Record) error {
	p.buf.Reset()
	if !rec.Data {
		return nil
	}
	if rec.Request.Length > maxData {
		return fmt.Errorf("no server takes so much at once (the limit is %d); the log is damaged", maxData)
	}
	// Memory is taken as the data come, not as the length promises.
	_, err := p.buf.ReadFrom(p.r)
	return err
}

// limit counts the blocks of a change of n bytes, and returns how many bytes of
// it are to be made.
func (p *player) limit(n uint64) uint64 {
	blocks := n / p.cfg.BlockSize
	if n%p.cfg.BlockSize > 0 {
		blocks++
	}
	if left := p.cfg.Blocks - p.done.Blocks; p.cfg.Blocks > 0 && blocks >= left {
		p.done.Stopped = true
		blocks = left
		n = min(n, left*p.cfg.BlockSize)
	}
	p.done.Blocks += blocks
	return n
}

// change makes the first n bytes of a change.
func (p *player) change(ctx context.Context, q *proto.Request, n int64) error {
	off := int64(q.Offset)
	var f block.Flags
	if p.cfg.Flush && q.Flags&proto.CmdFlagFUA != 0 && p.dev.Caps().FUA != block.None {
		f = block.FUA
	}
	switch q.Command {
	case proto.CmdWrite:
		return p.dev.WriteAt(ctx, p.buf.Bytes()[:n], off, f)
	case proto.CmdTrim:
		if p.dev.Caps().Trim == block.None {
			p.done.NotTrimmed++
			return nil
		}
		return p.dev.Trim(ctx, off, n, f)
	}
	if q.Flags&proto.CmdFlagNoHole != 0 {
		f |= block.NoHole
	}
	return p.dev.WriteZeroes(ctx, off, n, f)
}
