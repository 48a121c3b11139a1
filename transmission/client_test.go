package transmission

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"nbd.example/nbd/block"
	"nbd.example/nbd/proto"
)

// demuxPeer is the server's end of a Demux under test, driven by the test.
type demuxPeer struct {
	t              testing.TB
	conn           net.Conn
	ext            bool
	structuredRead bool
}

// newDemux returns a Demux and its peer, joined by a unix socket.
func newDemux(t testing.TB, cfg DemuxConfig) (*Demux, *demuxPeer) {
	t.Helper()
	client, server := demuxSockets(t)
	d := NewDemux(client, &cfg)
	t.Cleanup(func() { server.Close(); d.Close() })
	return d, &demuxPeer{t: t, conn: server, ext: cfg.Extended, structuredRead: cfg.Structured}
}

func demuxSockets(t testing.TB) (client, server net.Conn) {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(demuxTempDir(t), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	client, err = net.Dial("unix", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	server, err = l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	return client, server
}

// demuxTempDir is short enough for a unix socket's name.
func demuxTempDir(t testing.TB) string {
	dir, err := os.MkdirTemp("", "nbd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func (p *demuxPeer) request() proto.Request {
	p.t.Helper()
	r, _, err := p.readRequest()
	if err != nil {
		p.t.Errorf("reading a request: %v", err)
	}
	return r
}

func (p *demuxPeer) readRequest() (r proto.Request, payload []byte, err error) {
	size := proto.RequestSize
	if p.ext {
		size = proto.ExtendedRequestSize
	}
	b := make([]byte, size)
	if _, err := io.ReadFull(p.conn, b); err != nil {
		return r, nil, err
	}
	ok := false
	if p.ext {
		ok = proto.ParseExtendedRequest(b, &r)
	} else {
		ok = proto.ParseRequest(b, &r)
	}
	if !ok {
		return r, nil, errors.New("wrong magic")
	}
	payload = make([]byte, r.Payload(p.ext))
	_, err = io.ReadFull(p.conn, payload)
	return r, payload, err
}

func (p *demuxPeer) send(b []byte) {
	p.t.Helper()
	if _, err := p.conn.Write(b); err != nil {
		p.t.Logf("peer's write: %v", err)
	}
}

func (p *demuxPeer) simple(r proto.Request, e proto.Errno, data []byte) {
	p.send(append(proto.AppendSimpleReply(nil, e, r.Cookie), data...))
}

// demuxChunk is a chunk of a script. Unless raw is set, the header's length is
// the payload's.
type demuxChunk struct {
	typ     proto.ChunkType
	done    bool
	payload []byte
}

func (p *demuxPeer) chunks(r proto.Request, cs ...demuxChunk) {
	var b []byte
	for _, c := range cs {
		h := proto.Chunk{Type: c.typ, Cookie: r.Cookie, Offset: r.Offset, Length: uint64(len(c.payload))}
		if c.done {
			h.Flags = proto.ReplyFlagDone
		}
		if p.ext {
			b = proto.AppendExtendedChunk(b, &h)
		} else {
			b = proto.AppendChunk(b, &h)
		}
		b = append(b, c.payload...)
	}
	p.send(b)
}

func demuxData(off uint64, data string) demuxChunk {
	return demuxChunk{typ: proto.ChunkOffsetData, payload: append(binary.BigEndian.AppendUint64(nil, off), data...)}
}

func demuxHole(off uint64, n uint32) demuxChunk {
	return demuxChunk{typ: proto.ChunkOffsetHole, payload: proto.AppendHole(nil, off, n)}
}

func demuxError(t proto.ChunkType, e proto.ErrorPayload) demuxChunk {
	return demuxChunk{typ: t, payload: proto.AppendErrorPayload(nil, t, &e)}
}

func (c demuxChunk) last() demuxChunk { c.done = true; return c }

var demuxNone = demuxChunk{typ: proto.ChunkNone, done: true}

func TestDemuxSimple(t *testing.T) {
	ctx := t.Context()
	d, p := newDemux(t, DemuxConfig{})
	go func() {
		r := p.request()
		if r.Command != proto.CmdRead || r.Offset != 4096 || r.Length != 5 || r.Flags != 0 {
			t.Errorf("the peer read %+v", r)
		}
		p.simple(r, 0, []byte("hello"))
		r, data, _ := p.readRequest()
		if r.Command != proto.CmdWrite || r.Flags != proto.CmdFlagFUA || string(data) != "world" {
			t.Errorf("the peer read %+v, %q", r, data)
		}
		p.simple(r, proto.ENOSPC, nil)
		p.simple(p.request(), 0, nil)
		p.simple(p.request(), 999, nil)
	}()
	buf := make([]byte, 5)
	if err := d.Do(ctx, &Call{Command: proto.CmdRead, Offset: 4096, Data: buf}); err != nil || string(buf) != "hello" {
		t.Fatalf("%v, %q", err, buf)
	}
	err := d.Do(ctx, &Call{Command: proto.CmdWrite, Flags: proto.CmdFlagFUA, Data: []byte("world")})
	if !errors.Is(err, proto.ENOSPC) || !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("a refused write: %v", err)
	}
	if err := d.Do(ctx, &Call{Command: proto.CmdFlush}); err != nil {
		t.Fatal(err)
	}
	err = d.Do(ctx, &Call{Command: proto.CmdTrim, Length: 1 << 20})
	if !errors.Is(err, proto.EINVAL) || !strings.Contains(err.Error(), "999") {
		t.Fatalf("an unknown error number: %v", err)
	}
}

// TestDemuxReassembly replays replies to one READ of "abcdefgh" at 100 with
// structured and with extended replies.
func TestDemuxReassembly(t *testing.T) {
	for _, tt := range []struct {
		name  string
		flags proto.CommandFlags
		reply []demuxChunk
		want  string // the data; or, of an error, a part of its text
		lost  bool   // the connection must be dropped
		errno proto.Errno
	}{
		{name: "whole", reply: []demuxChunk{demuxData(100, "abcdefgh").last()}, want: "abcdefgh"},
		{name: "none at the end", reply: []demuxChunk{demuxData(100, "abcdefgh"), demuxNone}, want: "abcdefgh"},
		{name: "backwards", reply: []demuxChunk{demuxData(106, "gh"), demuxData(103, "def"), demuxData(100, "abc").last()}, want: "abcdefgh"},
		{name: "middle last", reply: []demuxChunk{demuxData(106, "gh"), demuxData(100, "abc"), demuxData(103, "def").last()}, want: "abcdefgh"},
		{name: "hole", reply: []demuxChunk{demuxData(100, "ab"), demuxHole(102, 4), demuxData(106, "gh").last()}, want: "ab\x00\x00\x00\x00gh"},
		{name: "DF", flags: proto.CmdFlagDF, reply: []demuxChunk{demuxData(100, "abcdefgh"), demuxNone}, want: "abcdefgh"},
		{name: "two with DF", flags: proto.CmdFlagDF, reply: []demuxChunk{demuxData(100, "abcd"), demuxData(104, "efgh").last()}, want: "more than one", lost: true},
		{name: "gap", reply: []demuxChunk{demuxData(100, "abc"), demuxData(104, "efgh").last()}, want: "missing", lost: true},
		{name: "nothing", reply: []demuxChunk{demuxNone}, want: "missing", lost: true},
		{name: "overlap", reply: []demuxChunk{demuxData(100, "abcde"), demuxData(104, "efgh").last()}, want: "overlaps", lost: true},
		{name: "twice", reply: []demuxChunk{demuxData(102, "cd"), demuxData(102, "cd"), demuxNone}, want: "overlaps", lost: true},
		{name: "overlap over a gap", reply: []demuxChunk{demuxData(100, "ab"), demuxData(104, "ef"), demuxData(102, "cde"), demuxNone}, want: "overlaps", lost: true},
		{name: "hole over data", reply: []demuxChunk{demuxData(100, "abcd"), demuxHole(103, 5), demuxNone}, want: "overlaps", lost: true},
		{name: "before the request", reply: []demuxChunk{demuxData(99, "ab"), demuxNone}, want: "at offset 99", lost: true},
		{name: "behind the request", reply: []demuxChunk{demuxData(107, "hi"), demuxNone}, want: "at offset 107", lost: true},
		{name: "too long", reply: []demuxChunk{demuxData(100, "abcdefghi").last()}, want: "9 bytes at offset 100", lost: true},
		{name: "offset that wraps", reply: []demuxChunk{demuxHole(1<<64-4, 110), demuxNone}, want: "in reply to a read", lost: true},
		{name: "hole of nothing", reply: []demuxChunk{demuxHole(100, 0), demuxNone}, want: "hole", lost: true},
		{name: "empty data", reply: []demuxChunk{demuxData(100, ""), demuxNone}, want: "8 bytes", lost: true},
		{name: "unknown chunk", reply: []demuxChunk{{typ: 77, done: true}}, want: "NBD_REPLY_TYPE(0x4d)", lost: true},
		{name: "status chunk", reply: []demuxChunk{{typ: proto.ChunkBlockStatus, payload: make([]byte, 12)}}, want: "BLOCK_STATUS", lost: true},
		{name: "none without done", reply: []demuxChunk{{typ: proto.ChunkNone}}, want: "NONE", lost: true},
		{name: "error", reply: []demuxChunk{demuxError(proto.ChunkErrorPlain, proto.ErrorPayload{Error: proto.EIO, Message: "the \"disk\""}).last()}, want: `the \"disk\"`, errno: proto.EIO},
		{name: "error at an offset", reply: []demuxChunk{demuxData(100, "abcd"), demuxError(proto.ChunkErrorOffset, proto.ErrorPayload{Error: proto.EIO, Offset: 104}), demuxNone}, want: "at offset 104", errno: proto.EIO},
		{name: "data after an error", reply: []demuxChunk{demuxError(proto.ChunkErrorOffset, proto.ErrorPayload{Error: proto.EIO, Offset: 104}), demuxData(100, "abcd"), demuxNone}, want: "at offset 104", errno: proto.EIO},
		{name: "data over an error", reply: []demuxChunk{demuxError(proto.ChunkErrorOffset, proto.ErrorPayload{Error: proto.EIO, Offset: 104}), demuxData(104, "e"), demuxNone}, want: "overlaps", lost: true},
		{name: "error outside", reply: []demuxChunk{demuxError(proto.ChunkErrorOffset, proto.ErrorPayload{Error: proto.EIO, Offset: 108}), demuxNone}, want: "at offset 108", lost: true},
		{name: "the first of two errors", reply: []demuxChunk{demuxError(proto.ChunkErrorPlain, proto.ErrorPayload{Error: proto.EINVAL}), demuxError(proto.ChunkErrorPlain, proto.ErrorPayload{Error: proto.EIO}).last()}, want: "INVAL", errno: proto.EINVAL},
		{name: "unknown error chunk", reply: []demuxChunk{{typ: proto.ChunkError + 99, payload: append(proto.AppendErrorPayload(nil, proto.ChunkErrorPlain, &proto.ErrorPayload{Error: proto.ENOMEM, Message: "m"}), 1, 2, 3), done: true}}, want: "ENOMEM", errno: proto.ENOMEM},
		{name: "unknown error number", reply: []demuxChunk{demuxError(proto.ChunkErrorPlain, proto.ErrorPayload{Error: 7777}).last()}, want: "7777", errno: proto.EINVAL},
		{name: "error 0", reply: []demuxChunk{demuxError(proto.ChunkErrorPlain, proto.ErrorPayload{}).last()}, want: "error 0", lost: true},
		{name: "short error", reply: []demuxChunk{{typ: proto.ChunkErrorPlain, payload: make([]byte, 5), done: true}}, want: "5 bytes", lost: true},
		{name: "long message", reply: []demuxChunk{{typ: proto.ChunkError + 99, payload: []byte{0, 0, 0, 5, 0, 9}, done: true}}, want: "9 bytes", lost: true},
		{name: "huge error chunk", reply: []demuxChunk{{typ: proto.ChunkErrorPlain, payload: make([]byte, maxErrorChunk+1), done: true}}, want: "limit", lost: true},
	} {
		for _, extended := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/extended=%v", tt.name, extended), func(t *testing.T) {
				d, p := newDemux(t, DemuxConfig{Structured: true, Extended: extended})
				go func() { p.chunks(p.request(), tt.reply...) }()
				buf := []byte("........")
				err := d.Do(t.Context(), &Call{Command: proto.CmdRead, Flags: tt.flags, Offset: 100, Data: buf})
				switch {
				case tt.lost:
					if !errors.Is(err, ErrConnectionLost) || !errors.Is(err, ErrPeer) || !strings.Contains(err.Error(), "peer sent") {
						t.Errorf("the connection survived: %v", err)
					}
					if _, err := p.conn.Read(make([]byte, 1)); err == nil {
						t.Error("the connection is not closed")
					}
				case tt.errno != 0:
					if !errors.Is(err, tt.errno) || d.Err() != nil {
						t.Errorf("%v, connection: %v", err, d.Err())
					}
				default:
					if err != nil || string(buf) != tt.want {
						t.Errorf("%v, %q", err, buf)
					}
				}
				if err != nil && !strings.Contains(err.Error(), tt.want) {
					t.Errorf("%v: does not mention %q", err, tt.want)
				}
			})
		}
	}
}

func TestDemuxFaults(t *testing.T) {
	simple := func(cookie uint64) []byte { return proto.AppendSimpleReply(nil, 0, cookie) }
	for _, tt := range []struct {
		name string
		cfg  DemuxConfig
		send func(r proto.Request) []byte
		want string
	}{
		{"wrong magic", DemuxConfig{}, func(r proto.Request) []byte { return make([]byte, 16) }, "0x00000000"},
		{"unknown cookie", DemuxConfig{}, func(r proto.Request) []byte { return simple(r.Cookie + 1) }, "cookie"},
		{"cookie of an old request", DemuxConfig{}, func(r proto.Request) []byte { return simple(r.Cookie ^ 1<<32) }, "cookie"},
		{"structured reply, not agreed", DemuxConfig{}, func(r proto.Request) []byte {
			return proto.AppendChunk(nil, &proto.Chunk{Flags: 1, Cookie: r.Cookie})
		}, "0x668e33ef"},
		{"simple reply with data, though structured", DemuxConfig{Structured: true}, func(r proto.Request) []byte { return simple(r.Cookie) }, "simple reply"},
		{"simple reply, though extended", DemuxConfig{Extended: true}, func(r proto.Request) []byte { return simple(r.Cookie) }, "0x67446698"},
		{"extended reply for another offset", DemuxConfig{Extended: true}, func(r proto.Request) []byte {
			return proto.AppendExtendedChunk(nil, &proto.Chunk{Flags: 1, Cookie: r.Cookie, Offset: r.Offset + 1})
		}, "offset"},
		{"extended reply of 2^63 bytes", DemuxConfig{Extended: true}, func(r proto.Request) []byte {
			b := proto.AppendExtendedChunk(nil, &proto.Chunk{Flags: 1, Type: proto.ChunkOffsetData, Cookie: r.Cookie, Offset: r.Offset, Length: 1 << 63})
			return binary.BigEndian.AppendUint64(b, r.Offset)
		}, "9223372036854775800 bytes"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d, p := newDemux(t, tt.cfg)
			go func() { p.send(tt.send(p.request())) }()
			err := d.Do(t.Context(), &Call{Command: proto.CmdRead, Offset: 512, Data: make([]byte, 8)})
			if !errors.Is(err, ErrPeer) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%v", err)
			}
			if again := d.Do(t.Context(), &Call{Command: proto.CmdFlush}); again != err {
				t.Errorf("later: %v", again)
			}
		})
	}
}

// TestDemuxSimpleErrorToStructuredRead tolerates what nbd-server does.
func TestDemuxSimpleErrorToStructuredRead(t *testing.T) {
	d, p := newDemux(t, DemuxConfig{Structured: true})
	go func() { p.simple(p.request(), proto.EINVAL, nil) }()
	err := d.Do(t.Context(), &Call{Command: proto.CmdRead, Data: make([]byte, 8)})
	if !errors.Is(err, proto.EINVAL) || d.Err() != nil {
		t.Errorf("%v; connection: %v", err, d.Err())
	}
}

func TestDemuxBlockStatus(t *testing.T) {
	contexts := []proto.MetaContext{{ID: 7, Name: "base:allocation"}, {ID: 9, Name: "x-a:b"}}
	one := []proto.Extent{{Length: 512, Status: 3}, {Length: 1 << 20}}
	two := []proto.Extent{{Length: 4096, Status: 1}}
	chunk := func(ext bool, id uint32, e []proto.Extent) demuxChunk {
		if ext {
			return demuxChunk{typ: proto.ChunkBlockStatusExt, payload: proto.AppendBlockStatusExt(nil, id, e)}
		}
		return demuxChunk{typ: proto.ChunkBlockStatus, payload: proto.AppendBlockStatus(nil, id, e)}
	}
	for _, ext := range []bool{false, true} {
		for _, tt := range []struct {
			name   string
			filter []uint32
			reply  []demuxChunk
			want   string // of the error
		}{
			{name: "both", reply: []demuxChunk{chunk(ext, 9, two), chunk(ext, 7, one).last()}},
			{name: "one missing", reply: []demuxChunk{chunk(ext, 7, one).last()}, want: "1 of 2 contexts"},
			{name: "twice", reply: []demuxChunk{chunk(ext, 7, one), chunk(ext, 7, one)}, want: "twice"},
			{name: "unknown context", reply: []demuxChunk{chunk(ext, 8, one)}, want: "context 8"},
			{name: "wrong kind", reply: []demuxChunk{chunk(!ext, 7, one)}, want: "BLOCK_STATUS"},
			{name: "empty extent", reply: []demuxChunk{chunk(ext, 7, []proto.Extent{{}})}, want: "no bytes"},
			{name: "no extent", reply: []demuxChunk{chunk(ext, 7, nil)}, want: "status chunk of"},
			{name: "filtered", filter: []uint32{9}, reply: []demuxChunk{chunk(ext, 9, two).last()}},
			{name: "filtered out", filter: []uint32{9}, reply: []demuxChunk{chunk(ext, 7, one).last()}, want: "context 7"},
		} {
			if tt.filter != nil && !ext {
				continue
			}
			t.Run(fmt.Sprintf("%s/extended=%v", tt.name, ext), func(t *testing.T) {
				d, p := newDemux(t, DemuxConfig{Structured: true, Extended: ext, Contexts: contexts})
				go func() {
					r, payload, err := p.readRequest()
					if err != nil {
						t.Error(err)
					}
					if tt.filter != nil {
						f, err := proto.ParseStatusFilter(payload, 9)
						if err != nil || r.Flags != proto.CmdFlagPayloadLen || f.Length != 8192 || len(f.Contexts) != 1 {
							t.Errorf("filter: %v %+v %+v", err, r, f)
						}
					} else if r.Length != 8192 {
						t.Errorf("%+v", r)
					}
					p.chunks(r, tt.reply...)
				}()
				got := map[uint32][]proto.Extent{}
				err := d.Do(t.Context(), &Call{Command: proto.CmdBlockStatus, Length: 8192, Filter: tt.filter,
					Status: func(id uint32, e []proto.Extent) { got[id] = append(got[id], e...) }})
				if tt.want != "" {
					if !errors.Is(err, ErrPeer) || !strings.Contains(err.Error(), tt.want) {
						t.Fatal(err)
					}
					return
				}
				if err != nil || len(got[9]) != 1 || got[9][0] != two[0] {
					t.Fatalf("%v %v", err, got)
				}
				if tt.filter == nil && (len(got[7]) != 2 || got[7][0] != one[0] || got[7][1] != one[1]) {
					t.Fatal(got)
				}
			})
		}
	}
}

// TestDemuxLongStatus has a chunk longer than the input buffer.
func TestDemuxLongStatus(t *testing.T) {
	d, p := newDemux(t, DemuxConfig{Structured: true, Contexts: []proto.MetaContext{{ID: 1}}})
	ext := make([]proto.Extent, 50000)
	for i := range ext {
		ext[i] = proto.Extent{Length: uint64(i + 1), Status: uint64(i % 4)}
	}
	go func() {
		r := p.request()
		p.chunks(r, demuxChunk{typ: proto.ChunkBlockStatus, payload: proto.AppendBlockStatus(nil, 1, ext), done: true})
		var b []byte
		r = p.request()
		b = proto.AppendChunk(b, &proto.Chunk{Type: proto.ChunkBlockStatus, Cookie: r.Cookie, Length: 4 + 8*(proto.MaxExtents+1)})
		p.send(b)
	}()
	var got []proto.Extent
	call := &Call{Command: proto.CmdBlockStatus, Length: 1 << 30, Status: func(_ uint32, e []proto.Extent) { got = append(got, e...) }}
	if err := d.Do(t.Context(), call); err != nil || len(got) != len(ext) || got[49999] != ext[49999] {
		t.Fatalf("%v, %d extents", err, len(got))
	}
	if err := d.Do(t.Context(), call); !errors.Is(err, ErrPeer) || !strings.Contains(err.Error(), "limit") {
		t.Fatalf("a chunk over the limit: %v", err)
	}
}

// TestDemuxManyAtOnce has requests in flight from many goroutines, answered
// out of order by a server that keeps a disk in memory.
func TestDemuxManyAtOnce(t *testing.T) {
	for _, cfg := range []DemuxConfig{{}, {Structured: true}, {Extended: true}} {
		cfg.MaxInFlight = 16
		d, p := newDemux(t, cfg)
		go p.serveMemory(make([]byte, 1<<20))
		var wg sync.WaitGroup
		for g := range 8 {
			wg.Go(func() {
				off := uint64(g) << 17
				for i, n := range []int{1, 512, 4096, 20000, 100000, 3, 65536} {
					want := bytes.Repeat([]byte{byte(g*16 + i + 1)}, n)
					if err := d.Do(t.Context(), &Call{Command: proto.CmdWrite, Offset: off, Data: want}); err != nil {
						t.Error(err)
						return
					}
					got := make([]byte, n)
					if err := d.Do(t.Context(), &Call{Command: proto.CmdRead, Offset: off, Data: got}); err != nil || !bytes.Equal(got, want) {
						t.Errorf("%d bytes: %v, same: %v", n, err, bytes.Equal(got, want))
						return
					}
				}
			})
		}
		wg.Wait()
		if err := d.Disconnect(t.Context()); err != nil {
			t.Error(err)
		}
	}
}

// serveMemory answers reads and writes, each second pair in reverse order.
func (p *demuxPeer) serveMemory(disk []byte) {
	defer p.conn.Close()
	var held []byte
	for i := 0; ; i++ {
		r, payload, err := p.readRequest()
		if err != nil || r.Command == proto.CmdDisc {
			return
		}
		var out []byte
		data := []byte(nil)
		switch r.Command {
		case proto.CmdWrite:
			copy(disk[r.Offset:], payload)
		case proto.CmdRead:
			data = disk[r.Offset : r.Offset+r.Length]
		}
		h := proto.Chunk{Cookie: r.Cookie, Offset: r.Offset, Flags: proto.ReplyFlagDone}
		if data != nil {
			h.Type, h.Length = proto.ChunkOffsetData, uint64(len(data))+8
		}
		switch {
		case p.ext:
			out = proto.AppendExtendedChunk(nil, &h)
		default:
			out = proto.AppendSimpleReply(nil, 0, r.Cookie)
			if p.structuredRead && data != nil {
				out = proto.AppendChunk(nil, &h)
			}
		}
		if data != nil && (p.ext || p.structuredRead) {
			out = binary.BigEndian.AppendUint64(out, r.Offset)
		}
		out = append(out, data...)
		p.send(append(out, held...))
		held = nil
	}
}

func TestDemuxCallbackOnce(t *testing.T) {
	d, p := newDemux(t, DemuxConfig{MaxInFlight: 64})
	var calls [64]atomic.Int32
	var wg sync.WaitGroup
	for i := range calls {
		wg.Add(1)
		err := d.Submit(t.Context(), &Call{Command: proto.CmdRead, Offset: uint64(i), Data: make([]byte, 1)}, func(err error) {
			calls[i].Add(1)
			if i < 32 != (err == nil) {
				t.Errorf("request %d: %v", i, err)
			}
			wg.Done()
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for range 32 {
		r := p.request()
		p.simple(r, 0, []byte{1})
	}
	p.conn.Close()
	wg.Wait()
	d.Close()
	for i := range calls {
		if n := calls[i].Load(); n != 1 {
			t.Errorf("callback %d was called %d times", i, n)
		}
	}
	if err := d.Submit(t.Context(), &Call{Command: proto.CmdFlush}, func(error) { t.Error("called") }); !errors.Is(err, ErrConnectionLost) {
		t.Errorf("after the end: %v", err)
	}
}

// TestDemuxBounded shows that no more than MaxInFlight are sent, and that
// waiting for a place ends with the context.
func TestDemuxBounded(t *testing.T) {
	d, p := newDemux(t, DemuxConfig{MaxInFlight: 2})
	for range 2 {
		if err := d.Submit(t.Context(), &Call{Command: proto.CmdFlush}, func(error) {}); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(time.Millisecond, cancel)
	if err := d.Submit(ctx, &Call{Command: proto.CmdFlush}, nil); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	r := p.request()
	p.simple(r, 0, nil)
	if err := d.Submit(t.Context(), &Call{Command: proto.CmdFlush}, func(error) {}); err != nil {
		t.Fatal(err)
	}
}

// TestDemuxCancel ends a call's context at each stage of its life. Each time
// the buffer must be free at once, though the server does nothing, and the
// connection must live on.
func TestDemuxCancel(t *testing.T) {
	const size = 4 << 20 // more than a socket holds
	start := func(d *Demux, c *Call) (cancel func(), result chan error) {
		ctx, cancel := context.WithCancel(t.Context())
		result = make(chan error, 1)
		go func() { result <- d.Do(ctx, c) }()
		return cancel, result
	}
	canceled := func(t *testing.T, result chan error) {
		t.Helper()
		if err := <-result; !errors.Is(err, context.Canceled) {
			t.Errorf("%v", err)
		}
	}
	t.Run("read, nothing has come", func(t *testing.T) {
		d, p := newDemux(t, DemuxConfig{})
		buf := make([]byte, size)
		cancel, result := start(d, &Call{Command: proto.CmdRead, Data: buf})
		r := p.request()
		cancel()
		canceled(t, result)
		go p.simple(r, 0, bytes.Repeat([]byte{1}, size))
		p.alive(d)
		if bytes.IndexByte(buf, 1) >= 0 {
			t.Error("the buffer was written after the call had returned")
		}
	})
	t.Run("read, half has come", func(t *testing.T) {
		d, p := newDemux(t, DemuxConfig{})
		buf := make([]byte, size)
		cancel, result := start(d, &Call{Command: proto.CmdRead, Data: buf})
		r := p.request()
		p.simple(r, 0, bytes.Repeat([]byte{1}, size/2)) // returns only when the Demux is inside the buffer
		cancel()
		canceled(t, result)
		clear(buf)
		go p.send(bytes.Repeat([]byte{2}, size/2))
		p.alive(d)
		if bytes.IndexByte(buf, 2) >= 0 {
			t.Error("the buffer was written after the call had returned")
		}
	})
	write := func(t *testing.T, d *Demux, p *demuxPeer) {
		buf := bytes.Repeat([]byte{1}, size)
		cancel, result := start(d, &Call{Command: proto.CmdWrite, Data: buf})
		var first [1]byte
		if _, err := io.ReadFull(p.conn, first[:]); err != nil { // it is being sent
			t.Fatal(err)
		}
		cancel()
		canceled(t, result)
		copy(buf, bytes.Repeat([]byte{2}, size))
		rest := make([]byte, proto.RequestSize+size-1)
		if _, err := io.ReadFull(p.conn, rest); err != nil {
			t.Fatal(err)
		}
		var r proto.Request
		proto.ParseRequest(append(first[:], rest[:proto.RequestSize-1]...), &r)
		if bytes.IndexByte(rest[proto.RequestSize:], 2) >= 0 {
			t.Error("what was written into the buffer after the call had returned was sent")
		}
		p.simple(r, 0, nil)
		p.alive(d)
	}
	t.Run("write, half is sent", func(t *testing.T) {
		d, p := newDemux(t, DemuxConfig{})
		write(t, d, p)
	})
	t.Run("write in pieces, half is sent", func(t *testing.T) {
		client, server := demuxSockets(t)
		d := NewDemux(struct{ net.Conn }{client}, &DemuxConfig{})
		t.Cleanup(func() { server.Close(); d.Close() })
		write(t, d, &demuxPeer{t: t, conn: server})
	})
	t.Run("write, not begun", func(t *testing.T) {
		d, p := newDemux(t, DemuxConfig{})
		done := make(chan error, 1)
		d.Submit(t.Context(), &Call{Command: proto.CmdWrite, Data: make([]byte, size)}, func(err error) { done <- err })
		var first [1]byte
		io.ReadFull(p.conn, first[:])
		cancel, result := start(d, &Call{Command: proto.CmdWrite, Data: make([]byte, 10)})
		cancel()
		canceled(t, result)
		rest := make([]byte, proto.RequestSize+size-1)
		io.ReadFull(p.conn, rest)
		var r proto.Request
		proto.ParseRequest(append(first[:], rest[:proto.RequestSize-1]...), &r)
		p.simple(r, 0, nil)
		if err := <-done; err != nil {
			t.Error(err)
		}
		p.alive(d)
	})
	t.Run("before it began", func(t *testing.T) {
		d, p := newDemux(t, DemuxConfig{})
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := d.Do(ctx, &Call{Command: proto.CmdFlush}); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		p.alive(d)
	})
}

// alive checks that the next request is answered.
func (p *demuxPeer) alive(d *Demux) {
	p.t.Helper()
	go func() { p.simple(p.request(), 0, nil) }()
	if err := d.Do(p.t.Context(), &Call{Command: proto.CmdFlush}); err != nil {
		p.t.Errorf("the connection is dead: %v", err)
	}
}

// TestDemuxEarlyReply has a server that answers a write before it has read all
// of it. The buffer must stay untouched until it is sent.
func TestDemuxEarlyReply(t *testing.T) {
	d, p := newDemux(t, DemuxConfig{})
	const size = 4 << 20
	result := make(chan error, 1)
	go func() {
		result <- d.Do(t.Context(), &Call{Command: proto.CmdWrite, Data: make([]byte, size)})
	}()
	b := make([]byte, proto.RequestSize)
	io.ReadFull(p.conn, b)
	var r proto.Request
	proto.ParseRequest(b, &r)
	p.simple(r, proto.EPERM, nil)
	if _, err := io.CopyN(io.Discard, p.conn, size); err != nil {
		t.Fatal(err)
	}
	if err := <-result; !errors.Is(err, fs.ErrPermission) || !errors.Is(err, block.ErrReadOnly) {
		t.Errorf("%v", err)
	}
	p.alive(d)
}

func TestDemuxDisconnect(t *testing.T) {
	for _, ext := range []bool{false, true} {
		d, p := newDemux(t, DemuxConfig{Extended: ext, Structured: true})
		pending := make(chan error, 1)
		d.Submit(t.Context(), &Call{Command: proto.CmdFlush}, func(err error) { pending <- err })
		r := p.request()
		result := make(chan error, 1)
		go func() { result <- d.Disconnect(t.Context()) }()
		for closing := false; !closing; runtime.Gosched() {
			d.mu.Lock()
			closing = d.closing
			d.mu.Unlock()
		}
		if err := d.Do(t.Context(), &Call{Command: proto.CmdFlush}); !errors.Is(err, ErrDisconnected) {
			t.Error(err)
		}
		p.chunks(r, demuxNone) // only now may DISC be sent
		if err := <-pending; err != nil {
			t.Error(err)
		}
		disc := p.request()
		if disc.Command != proto.CmdDisc || disc.Offset != 0 || disc.Length != 0 || disc.Flags != 0 || disc.Cookie != 0 {
			t.Errorf("%+v", disc)
		}
		p.conn.(*net.UnixConn).CloseWrite()
		if err := <-result; err != nil {
			t.Error(err)
		}
		if rest, _ := io.ReadAll(p.conn); len(rest) > 0 {
			t.Errorf("%d bytes after NBD_CMD_DISC", len(rest))
		}
		if err := d.Do(t.Context(), &Call{Command: proto.CmdFlush}); !errors.Is(err, ErrDisconnected) {
			t.Error(err)
		}
	}
}

// TestDemuxDisconnectStuck has a server that does not answer.
func TestDemuxDisconnectStuck(t *testing.T) {
	d, p := newDemux(t, DemuxConfig{})
	pending := make(chan error, 1)
	d.Submit(t.Context(), &Call{Command: proto.CmdFlush}, func(err error) { pending <- err })
	p.request()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := d.Disconnect(ctx); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if err := <-pending; !errors.Is(err, ErrDisconnected) {
		t.Error(err)
	}
}

// TestDemuxShutdown has a server that says NBD_ESHUTDOWN: no new request, but
// those in flight are awaited, and then NBD_CMD_DISC is sent.
func TestDemuxShutdown(t *testing.T) {
	d, p := newDemux(t, DemuxConfig{})
	one, two := make(chan error, 1), make(chan error, 1)
	d.Submit(t.Context(), &Call{Command: proto.CmdFlush}, func(err error) { one <- err })
	d.Submit(t.Context(), &Call{Command: proto.CmdFlush}, func(err error) { two <- err })
	a, b := p.request(), p.request()
	p.simple(a, proto.ESHUTDOWN, nil)
	if err := <-one; !errors.Is(err, proto.ESHUTDOWN) {
		t.Error(err)
	}
	if err := d.Do(t.Context(), &Call{Command: proto.CmdFlush}); err != ErrShuttingDown || !d.ShuttingDown() {
		t.Error(err)
	}
	p.simple(b, 0, nil)
	if err := <-two; err != nil {
		t.Error(err)
	}
	if r := p.request(); r.Command != proto.CmdDisc {
		t.Errorf("%+v", r)
	}
	p.conn.Close()
	<-d.Done()
	if err := d.Err(); err != ErrShuttingDown {
		t.Error(err)
	}
	if err := d.Disconnect(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestDemuxEarlyBytes(t *testing.T) {
	// What the server sends at once can be there only if it guesses the first
	// cookie; that is what this test does.
	early := proto.AppendSimpleReply(nil, 0, 1<<32)
	client, server := demuxSockets(t)
	d := NewDemux(client, &DemuxConfig{Early: early[:5]})
	defer d.Close()
	p := &demuxPeer{t: t, conn: server}
	go func() { p.request(); p.send(early[5:]) }()
	if err := d.Do(t.Context(), &Call{Command: proto.CmdFlush}); err != nil {
		t.Error(err)
	}
}

func TestDemuxRefusals(t *testing.T) {
	d, _ := newDemux(t, DemuxConfig{})
	for _, c := range []Call{
		{Command: proto.CmdDisc},
		{Command: proto.CmdTrim, Length: 1 << 32},
		{Command: proto.CmdBlockStatus, Filter: []uint32{1}},
	} {
		if err := d.Do(t.Context(), &c); err == nil {
			t.Errorf("%+v was sent", c)
		}
	}
}

func TestDemuxAllocations(t *testing.T) {
	d, p := newDemux(t, DemuxConfig{Structured: true})
	go func() {
		b, out := make([]byte, proto.RequestSize), make([]byte, 0, 8192)
		var r proto.Request
		for {
			if _, err := io.ReadFull(p.conn, b); err != nil {
				return
			}
			proto.ParseRequest(b, &r)
			out = proto.AppendChunk(out[:0], &proto.Chunk{Flags: 1, Type: proto.ChunkOffsetData, Cookie: r.Cookie, Length: 8 + r.Length})
			out = binary.BigEndian.AppendUint64(out, r.Offset)
			p.conn.Write(out[:len(out)+int(r.Length)])
		}
	}()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	call := &Call{Command: proto.CmdRead, Data: make([]byte, 4096)}
	if n := testing.AllocsPerRun(200, func() {
		if err := d.Do(ctx, call); err != nil {
			t.Fatal(err)
		}
	}); n > 0 {
		t.Errorf("%v allocations for each request", n)
	}
}
