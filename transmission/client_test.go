package transmission

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

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

// demuxChunk is a chunk of a script.
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

// serveMemory answers reads and writes in any order: each from a goroutine of
// its own.
func (p *demuxPeer) serveMemory(disk []byte) {
	defer p.conn.Close()
	var mu sync.Mutex // guards the disk and the output
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		r, payload, err := p.readRequest()
		if err != nil || r.Command == proto.CmdDisc {
			return
		}
		wg.Go(func() {
			mu.Lock()
			defer mu.Unlock()
			var data []byte
			switch r.Command {
			case proto.CmdWrite:
				copy(disk[r.Offset:], payload)
			case proto.CmdRead:
				data = disk[r.Offset : r.Offset+r.Length]
			}
			if p.ext || p.structuredRead && data != nil {
				c := demuxNone
				if data != nil {
					c = demuxData(r.Offset, string(data)).last()
				}
				p.chunks(r, c)
			} else {
				p.simple(r, 0, data)
			}
		})
	}
}
