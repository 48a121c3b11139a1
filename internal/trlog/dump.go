package trlog

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"

	"nbd.example/nbd/proto"
)

// Dump writes the records of a log as text, in the words of nbd-trdump: a line
// for each, which begins with > for a request and with < for a reply. A log that
// ends in the middle of a record is dumped up to there, and the error is
// ErrTruncated.
func Dump(w io.Writer, log io.Reader) error {
	return each(w, log, func(w *bufio.Writer, r *Record) error { return dumpText(w, r) })
}

// DumpJSON is Dump with a JSON object for each record, one a line.
func DumpJSON(w io.Writer, log io.Reader) error {
	return each(w, log, func(w *bufio.Writer, r *Record) error {
		line, err := json.Marshal(describe(r))
		if err != nil {
			return err
		}
		_, err = w.Write(append(line, '\n'))
		return err
	})
}

func each(w io.Writer, log io.Reader, dump func(*bufio.Writer, *Record) error) error {
	out := bufio.NewWriter(w)
	r := NewReader(log)
	for {
		rec, err := r.Next()
		if err == nil {
			err = dump(out, &rec)
		}
		if err == io.EOF {
			return out.Flush()
		}
		if err != nil {
			return errors.Join(err, out.Flush())
		}
	}
}

// known returns the name of a command or of a chunk; where there is none, the word
// of nbd-trdump.
func known(name fmt.Stringer) string {
	text := name.String()
	if strings.ContainsFunc(text, func(c rune) bool { return c != '_' && (c < 'A' || c > 'Z') }) {
		return "UNKNOWN"
	}
	return text
}

func dumpText(w io.Writer, r *Record) (err error) {
	q := &r.Request
	word := uint32(q.Flags)<<16 | uint32(q.Command)
	switch r.Kind {
	case Request:
		fua := "NONE"
		if q.Flags&proto.CmdFlagFUA != 0 {
			fua = "FUA"
		}
		_, err = fmt.Fprintf(w, "> H=%016x C=0x%08x (%20s+%4s) O=%016x L=%08x\n", q.Cookie, word, known(q.Command), fua, q.Offset, q.Length)
	case Reply:
		_, err = fmt.Fprintf(w, "< H=%016x E=0x%08x\n", r.Reply.Cookie, uint32(r.Reply.Error))
	case Chunk:
		c := &r.Chunk
		_, err = fmt.Fprintf(w, "<S: H=%016x T=0x%04x (%20s) F=0x%04x L=0x%04x\n", c.Cookie, uint16(c.Type), known(c.Type), uint16(c.Flags), c.Length)
	case Setting:
		on := 0
		if r.Data {
			on = 1
		}
		_, err = fmt.Fprintf(w, "TRACE_OPTION C=0x%08x (%23s) O=%016x L=%08x\nTRACE_OPTION DATALOG set to %d.\n", word, "NBD_TRACELOG_SET_DATALOG", q.Offset, q.Length, on)
	case Lost:
		_, err = fmt.Fprintf(w, "TRACE_OPTION %d records are missing: the server could not write its log\n", r.Count)
	case Unknown:
		_, err = fmt.Fprintf(w, "TRACE_OPTION C=0x%08x (%23s) O=%016x L=%08x\nTRACE_OPTION ? unknown\n", word, "UNKNOWN", q.Offset, q.Length)
	case Garbage:
		_, err = fmt.Fprintf(w, "? %d bytes at %d are no record\n", r.Count, r.At)
	}
	return err
}

// described is a record in JSON.
type described struct {
	Record string  `json:"record"` // request, reply, chunk, datalog, lost, unknown, garbage
	At     int64   `json:"at"`
	Cookie string  `json:"cookie,omitempty"` // 16 hexadecimal digits: too large for many readers of JSON
	Name   string  `json:"name,omitempty"`   // of the command, or the chunk
	Flags  string  `json:"flags,omitempty"`
	Offset *uint64 `json:"offset,omitempty"`
	Length *uint64 `json:"length,omitempty"`
	Error  string  `json:"error,omitempty"`
	On     *bool   `json:"on,omitempty"`
	Count  uint64  `json:"count,omitempty"`
}

func describe(r *Record) (d described) {
	d.At = r.At
	hex := func(v uint64) string { return fmt.Sprintf("%016x", v) }
	switch q := &r.Request; r.Kind {
	case Request:
		d.Record, d.Cookie, d.Name, d.Offset, d.Length = "request", hex(q.Cookie), q.Command.String(), &q.Offset, &q.Length
		if q.Flags != 0 {
			d.Flags = q.Flags.String()
		}
	case Reply:
		d.Record, d.Cookie, d.Error = "reply", hex(r.Reply.Cookie), "OK"
		if r.Reply.Error != proto.OK {
			d.Error = r.Reply.Error.String()
		}
	case Chunk:
		d.Record, d.Cookie, d.Name, d.Length = "chunk", hex(r.Chunk.Cookie), r.Chunk.Type.String(), &r.Chunk.Length
		if r.Chunk.Flags != 0 {
			d.Flags = r.Chunk.Flags.String()
		}
	case Setting:
		d.Record, d.On = "datalog", &r.Data
	case Lost:
		d.Record, d.Count = "lost", r.Count
	case Unknown:
		d.Record, d.Offset, d.Length = "unknown", &q.Offset, &q.Length
	case Garbage:
		d.Record, d.Count = "garbage", r.Count
	}
	return d
}
