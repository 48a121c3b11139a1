package transmission

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"io/fs"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"nbd.example/nbd/block"
	"nbd.example/nbd/proto"
)

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
		p.send(bytes.Repeat([]byte{2}, size/2)) // before any other reply
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
