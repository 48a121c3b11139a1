package transmission

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"sync"
	"testing"
	"time"

	"nbd.example/nbd/proto"
)

// demuxTape is a connection whose server says what a tape holds, and then hangs
// up. It begins when the client has sent something.
type demuxTape struct {
	net.Conn
	tape  *bytes.Reader
	begin chan struct{}
	once  sync.Once
}

func (c *demuxTape) Read(p []byte) (int, error) {
	<-c.begin
	return c.tape.Read(p)
}

func (c *demuxTape) Write(p []byte) (int, error) {
	c.once.Do(func() { close(c.begin) })
	return len(p), nil
}

func (c *demuxTape) Close() error                     { c.once.Do(func() { close(c.begin) }); return nil }
func (c *demuxTape) SetReadDeadline(time.Time) error  { return nil }
func (c *demuxTape) SetWriteDeadline(time.Time) error { return nil }

// FuzzDemux feeds a Demux with a server's bytes. Whatever they are, each request
// ends once, nothing is written outside its buffer, and data reach a read that
// succeeds in full.
func FuzzDemux(f *testing.F) {
	cookie := func(i uint64) uint64 { return 1<<32 | i }
	data := binary.BigEndian.AppendUint64(nil, 4096)
	data = append(data, bytes.Repeat([]byte{7}, 512)...)
	simple := append(proto.AppendSimpleReply(nil, 0, cookie(0)), data[8:]...)
	structured := append(proto.AppendChunk(nil, &proto.Chunk{Type: proto.ChunkOffsetData, Cookie: cookie(0), Length: 520}), data...)
	structured = proto.AppendChunk(structured, &proto.Chunk{Flags: 1, Cookie: cookie(0)})
	status := proto.AppendBlockStatus(nil, 1, []proto.Extent{{Length: 512, Status: 3}})
	structured = append(proto.AppendChunk(structured, &proto.Chunk{Flags: 1, Type: proto.ChunkBlockStatus, Cookie: cookie(1), Length: uint64(len(status))}), status...)
	failed := proto.AppendErrorPayload(nil, proto.ChunkErrorOffset, &proto.ErrorPayload{Error: 5, Offset: 4100, Message: "m"})
	extended := append(proto.AppendExtendedChunk(nil, &proto.Chunk{Flags: 1, Type: proto.ChunkErrorOffset, Cookie: cookie(0), Offset: 4096, Length: uint64(len(failed))}), failed...)
	f.Add(byte(0), simple)
	f.Add(byte(1), structured)
	f.Add(byte(2), extended)
	f.Fuzz(func(t *testing.T, style byte, tape []byte) {
		conn := &demuxTape{tape: bytes.NewReader(tape), begin: make(chan struct{})}
		d := NewDemux(conn, &DemuxConfig{Structured: style&1 != 0, Extended: style&2 != 0, Contexts: []proto.MetaContext{{ID: 1}}})
		defer d.Close()
		backing := make([]byte, 512+2)
		backing[0], backing[513] = 0xaa, 0xbb
		var wg sync.WaitGroup
		for _, c := range []Call{
			{Command: proto.CmdRead, Offset: 4096, Data: backing[1:513:513]},
			{Command: proto.CmdBlockStatus, Length: 1 << 20, Status: func(id uint32, ext []proto.Extent) {
				if id != 1 || len(ext) == 0 {
					t.Errorf("context %d, %d extents", id, len(ext))
				}
			}},
			{Command: proto.CmdFlush},
		} {
			wg.Add(1)
			calls := 0
			err := d.Submit(t.Context(), &c, func(err error) {
				if calls++; calls > 1 {
					t.Error("called twice")
				}
				wg.Done()
			})
			if err != nil {
				wg.Done()
			}
		}
		wg.Wait()
		<-d.Done()
		if err := d.Err(); !errors.Is(err, ErrConnectionLost) && !errors.Is(err, ErrShuttingDown) && !errors.Is(err, ErrDisconnected) {
			t.Errorf("%v", err)
		}
		if backing[0] != 0xaa || backing[513] != 0xbb {
			t.Error("written outside the buffer")
		}
	})
}

// BenchmarkDemux has reads of 4 KiB in flight, answered by the simplest server.
func BenchmarkDemux(b *testing.B) {
	for _, depth := range []int{1, 32} {
		b.Run(map[int]string{1: "one", 32: "many"}[depth], func(b *testing.B) {
			d, p := newDemux(b, DemuxConfig{MaxInFlight: depth})
			go demuxEcho(p)
			b.ReportAllocs()
			b.SetBytes(4096)
			var wg sync.WaitGroup
			done := func(err error) {
				if err != nil {
					b.Error(err)
				}
				wg.Done()
			}
			call := Call{Command: proto.CmdRead, Data: make([]byte, 4096)}
			for b.Loop() {
				if depth == 1 {
					if err := d.Do(b.Context(), &call); err != nil {
						b.Fatal(err)
					}
					continue
				}
				wg.Add(1)
				if err := d.Submit(b.Context(), &call, done); err != nil {
					b.Fatal(err)
				}
			}
			wg.Wait()
		})
	}
}

// demuxEcho answers reads in batches.
func demuxEcho(p *demuxPeer) {
	in, out := make([]byte, 0, 64<<10), make([]byte, 0, 1<<20)
	data := make([]byte, 4096)
	for {
		n, err := p.conn.Read(in[len(in):cap(in)])
		if err != nil {
			return // the benchmark is over
		}
		in = in[:len(in)+n]
		var r proto.Request
		rest := in
		for ; len(rest) >= proto.RequestSize; rest = rest[proto.RequestSize:] {
			proto.ParseRequest(rest, &r)
			out = append(proto.AppendSimpleReply(out, 0, r.Cookie), data[:r.Length]...)
		}
		in = in[:copy(in, rest)]
		if _, err := p.conn.Write(out); err != nil {
			return
		}
		out = out[:0]
	}
}
