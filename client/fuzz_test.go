package client_test

import (
	"bytes"
	"net"
	"sync"
	"testing"
	"time"

	"nbd.example/nbd/block"
	"nbd.example/nbd/client"
	"nbd.example/nbd/proto"
)

// tape is a connection whose server says what the tape holds, whatever it is
// asked, and then hangs up.
type tape struct {
	mu     sync.Mutex
	said   *bytes.Reader
	closed bool
}

func (c *tape) Read(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return 0, net.ErrClosed
	}
	return c.said.Read(p)
}

func (c *tape) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	return nil
}

func (c *tape) Write(p []byte) (int, error)      { return len(p), nil }
func (c *tape) LocalAddr() net.Addr              { return &net.UnixAddr{} }
func (c *tape) RemoteAddr() net.Addr             { return &net.UnixAddr{} }
func (c *tape) SetDeadline(time.Time) error      { return nil }
func (c *tape) SetReadDeadline(time.Time) error  { return nil }
func (c *tape) SetWriteDeadline(time.Time) error { return nil }

// FuzzClient feeds the whole client with a server's bytes, from the greeting on.
// It must end, without a panic.
func FuzzClient(f *testing.F) {
	session := func(extended, structured proto.OptionReply) []byte {
		b := proto.AppendGreeting(nil, newstyle)
		b = proto.AppendOptionReply(b, proto.OptExtendedHeaders, extended, nil)
		if extended != proto.RepAck {
			b = proto.AppendOptionReply(b, proto.OptStructuredReply, structured, nil)
		}
		if extended == proto.RepAck || structured == proto.RepAck {
			b = proto.AppendOptionReply(b, proto.OptSetMetaContext, proto.RepMetaContext, proto.AppendMetaContext(nil, &proto.MetaContext{ID: 1, Name: proto.ContextBaseAllocation}))
			b = proto.AppendOptionReply(b, proto.OptSetMetaContext, proto.RepAck, nil)
		}
		b = proto.AppendOptionReply(b, proto.OptGo, proto.RepInfo, proto.AppendInfoExport(nil, proto.ExportReply{Size: 1 << 20, Flags: allFlags}))
		b = proto.AppendOptionReply(b, proto.OptGo, proto.RepInfo, proto.AppendInfoBlockSize(nil, proto.BlockSize{Minimum: 1, Preferred: 4096, MaxPayload: 1 << 20}))
		b = proto.AppendOptionReply(b, proto.OptGo, proto.RepAck, nil)
		if extended != proto.RepAck && structured != proto.RepAck {
			b = append(proto.AppendSimpleReply(b, 0, 1<<32), make([]byte, 512)...)
		}
		return b
	}
	f.Add(session(proto.RepAck, 0))
	f.Add(session(proto.RepErrUnsup, proto.RepAck))
	f.Add(session(proto.RepErrUnsup, proto.RepErrUnsup))
	f.Fuzz(func(t *testing.T, said []byte) {
		conn := &tape{said: bytes.NewReader(said)}
		c, err := client.New(t.Context(), conn, nil)
		if err != nil {
			return
		}
		defer c.Close()
		d, err := block.New(c)
		if err != nil {
			return
		}
		ctx := t.Context()
		n := min(512, d.Size())
		d.ReadAt(ctx, make([]byte, n), 0)
		d.Extents(ctx, 0, n, 0, func(x block.Extent) bool { return x.Length > 0 })
		d.Flush(ctx)
	})
}
