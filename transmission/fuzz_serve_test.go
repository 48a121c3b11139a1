package transmission

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"testing"
	"time"

	"nbd.example/nbd/block"
	"nbd.example/nbd/proto"
)

// fuzzPayload is the maximum payload that fuzzed connections have.
const fuzzPayload = proto.DefaultMaxPayload

// replay is what a stream means: an interpreter of its own, as simple as can be.
type replay struct {
	style   style
	disk    []byte
	waiting map[uint64]proto.Request // those that must be answered
	ok      map[uint64]bool          // whether with success
	vague   bool                     // a long write broke off, and may have been begun
	closed  bool                     // the stream ends the connection by itself
}

// run interprets stream and gives every request a cookie of its own.
func (x *replay) run(stream []byte) {
	size := x.style.requestSize()
	for len(stream) >= size {
		var q proto.Request
		valid := false
		if x.style == extended {
			valid = proto.ParseExtendedRequest(stream, &q)
		} else {
			valid = proto.ParseRequest(stream, &q)
		}
		if !valid || q.Command == proto.CmdDisc {
			x.closed = true
			return
		}
		q.Cookie = uint64(len(x.waiting) + 1)
		binary.BigEndian.PutUint64(stream[8:], q.Cookie)
		stream = stream[size:]
		payload := q.Payload(x.style == extended)
		if x.style == extended && payload > fuzzPayload {
			x.closed = true
			return
		}
		good := x.good(&q)
		if payload > uint64(len(stream)) {
			if !good || q.Length == 0 { // refused before its payload is read
				x.waiting[q.Cookie], x.ok[q.Cookie] = q, good
			}
			x.vague = x.vague || good && q.Command == proto.CmdWrite && q.Length > wholeWrite
			return
		}
		if good && q.Command == proto.CmdBlockStatus && payload > 0 {
			good = x.goodFilter(&q, stream[:payload])
		}
		x.waiting[q.Cookie], x.ok[q.Cookie] = q, good
		if good && q.Length > 0 {
			switch q.Command {
			case proto.CmdWrite:
				copy(x.disk[q.Offset:], stream[:payload])
			case proto.CmdTrim, proto.CmdWriteZeroes:
				clear(x.disk[q.Offset : q.Offset+q.Length])
			}
		}
		stream = stream[payload:]
	}
}

// good reports whether q must succeed, as far as its header tells.
func (x *replay) good(q *proto.Request) bool {
	known := q.Command <= proto.CmdBlockStatus
	if !known || q.Flags&^flagsOf(q.Command, x.style) != 0 {
		return false
	}
	size := uint64(len(x.disk))
	inside := q.Offset <= size && q.Length <= size-q.Offset
	switch q.Command {
	case proto.CmdFlush:
		return true
	case proto.CmdWrite:
		return inside && (x.style != extended || q.Flags&proto.CmdFlagPayloadLen != 0)
	case proto.CmdWriteZeroes:
		return inside && (q.Length == 0 || q.Flags&(proto.CmdFlagNoHole|proto.CmdFlagFastZero) != proto.CmdFlagNoHole|proto.CmdFlagFastZero)
	case proto.CmdBlockStatus:
		if q.Flags&proto.CmdFlagPayloadLen != 0 {
			return q.Offset <= size && q.Length >= 8 && q.Length <= 8+4*uint64(len(allContexts))
		}
		return x.style != simple && inside && q.Length > 0
	}
	return inside
}

func (x *replay) goodFilter(q *proto.Request, payload []byte) bool {
	if len(payload)%4 != 0 {
		return false
	}
	n := binary.BigEndian.Uint64(payload)
	seen := map[uint32]bool{}
	for b := payload[8:]; len(b) > 0; b = b[4:] {
		id := binary.BigEndian.Uint32(b)
		if seen[id] || id != idAllocation && id != idDepth && id != idInstance {
			return false
		}
		seen[id] = true
	}
	return n > 0 && n <= uint64(len(x.disk))-q.Offset
}

// FuzzServe feeds a whole connection with arbitrary bytes. Serve must return, every
// request must have the answer that replay says, and the device must hold what
// replay says. How goroutines meet is chance, so that coverage is too: run it with
// -fuzzminimizetime=1x.
func FuzzServe(f *testing.F) {
	for s := range style(3) {
		x := newSession(rand.New(rand.NewPCG(uint64(s), 1)), s, 12, make([]byte, mib))
		f.Add(byte(s), x.stream)
		f.Add(byte(s)|4, x.stream[:len(x.stream)*2/3])
		var all []byte
		for _, c := range append(commands, proto.CmdDisc) {
			for _, flags := range []proto.CommandFlags{0, proto.CmdFlagFUA, flagsOf(c, s)} {
				q, payload := valid(c)
				if q.Flags = flags; c == proto.CmdBlockStatus && flags&proto.CmdFlagPayloadLen != 0 {
					payload = proto.AppendStatusFilter(nil, &proto.StatusFilter{Length: 4096, Contexts: []uint32{idDepth, idAllocation}})
					q.Length = uint64(len(payload))
				}
				all = s.encode(all, q, payload)
			}
		}
		f.Add(byte(s), all)
		f.Add(byte(s)|4, all)
		f.Add(byte(s), s.encode(nil, proto.Request{Command: proto.CmdRead, Offset: 1 << 63, Length: 1 << 31}, nil))
		f.Add(byte(s), s.encode(nil, proto.Request{Command: proto.CmdWrite, Flags: proto.CmdFlagPayloadLen, Length: 1 << 31}, nil))
	}
	f.Fuzz(func(t *testing.T, how byte, stream []byte) {
		if len(stream) > 1<<18 {
			t.Skip("long streams only make the same things slow")
		}
		fuzzServe(t, style(how%3), how&4 != 0, bytes.Clone(stream))
	})
}

func fuzzServe(t *testing.T, s style, layered bool, stream []byte) {
	d := newRAM(mib)
	d.fill(0, 256<<10)
	x := &replay{style: s, disk: bytes.Clone(d.data), waiting: map[uint64]proto.Request{}, ok: map[uint64]bool{}}
	x.run(stream)
	var layers []block.Layer
	if layered {
		layers = []block.Layer{passThrough()}
	}
	client, server := connect(t, "unix")
	defer client.Close()
	client.SetDeadline(time.Now().Add(patience))
	session := &Session{Device: stack(t, d, layers...), Flags: everything(s), Structured: s == structured, Extended: s == extended}
	if s != simple {
		session.Contexts = allContexts
	}
	var log lockedBuffer
	session.Log = func() *slog.Logger { return slog.New(slog.NewTextHandler(&log, nil)) }
	done := make(chan error, 1)
	go func() {
		_, err := Serve(context.Background(), server, session, &Config{MaxPayload: fuzzPayload})
		server.Close()
		done <- err
	}()
	go func() {
		client.Write(stream)
		client.(*net.UnixConn).CloseWrite()
	}()
	for {
		p, err := readReply(client, s, x.waiting)
		if errors.Is(err, io.EOF) || x.closed && err != nil {
			break // with bytes behind the end the connection may be reset
		}
		if err != nil {
			t.Fatal(err)
		}
		if ok := p.errno == proto.OK; ok != x.ok[p.cookie] {
			t.Fatalf("request %d: %v (%q), want success: %v", p.cookie, p.errno, p.text, x.ok[p.cookie])
		}
	}
	err := <-done
	if errors.Is(err, ErrPanic) {
		t.Fatalf("%v\n%s", err, log.String())
	}
	if len(x.waiting) > 0 && !x.closed {
		t.Fatalf("no answers to %v", x.waiting)
	}
	if !x.vague && !bytes.Equal(d.contents(0, mib), x.disk) {
		t.Fatal("the device does not hold what the stream says")
	}
}
