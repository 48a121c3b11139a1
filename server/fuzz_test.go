package server

import (
	"bytes"
	"context"
	"io"
	"net"
	"testing"
	"time"

	"nbd.example/nbd/proto"
)

// recorded is a client that has sent all that it will ever send, and takes
// whatever comes.
type recorded struct {
	*bytes.Reader
	written int
}

func (c *recorded) Write(p []byte) (int, error) {
	c.written += len(p)
	if c.written > 64<<20 {
		return 0, io.ErrClosedPipe
	}
	return len(p), nil
}
func (*recorded) Close() error                     { return nil }
func (*recorded) LocalAddr() net.Addr              { return tcpAddr("127.0.0.1") }
func (*recorded) RemoteAddr() net.Addr             { return tcpAddr("127.0.0.1") }
func (*recorded) SetDeadline(time.Time) error      { return nil }
func (*recorded) SetReadDeadline(time.Time) error  { return nil }
func (*recorded) SetWriteDeadline(time.Time) error { return nil }

// FuzzServeConn feeds whole connections. Whatever a client sends, the
// connection ends, nothing panics, and the export is not left in use.
func FuzzServeConn(f *testing.F) {
	begin := proto.AppendClientFlags(nil, proto.ClientFixedNewstyle|proto.ClientNoZeroes)
	end := proto.AppendRequest(nil, &proto.Request{Command: proto.CmdDisc})
	info := proto.AppendInfoRequest(nil, &proto.InfoRequest{Export: "a", Requests: []proto.Info{proto.InfoBlockSize}})
	meta := proto.AppendMetaContextRequest(nil, &proto.MetaContextRequest{Export: "a", Queries: []string{"base:allocation", "x-nbd-instance:"}})
	requests := proto.AppendRequest(nil, &proto.Request{Command: proto.CmdRead, Length: 4096})
	requests = append(proto.AppendRequest(requests, &proto.Request{Command: proto.CmdWrite, Offset: 512, Length: 4}), "data"...)
	requests = append(proto.AppendRequest(requests, &proto.Request{Command: proto.CmdBlockStatus, Length: 1 << 20}), end...)
	session := func(options ...[]byte) []byte { return bytes.Join(append([][]byte{begin}, options...), nil) }
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"))
	f.Add(session(proto.AppendOption(nil, proto.OptList, nil), proto.AppendOption(nil, proto.OptAbort, nil)))
	f.Add(session(proto.AppendOption(nil, proto.OptInfo, info), proto.AppendOption(nil, proto.OptGo, info), requests))
	f.Add(session(proto.AppendOption(nil, proto.OptExportName, []byte("private")), requests))
	f.Add(session(proto.AppendOption(nil, proto.OptStructuredReply, nil), proto.AppendOption(nil, proto.OptSetMetaContext, meta),
		proto.AppendOption(nil, proto.OptGo, info), requests))
	f.Add(session(proto.AppendOption(nil, proto.OptExtendedHeaders, nil), proto.AppendOption(nil, proto.OptGo, info), requests))

	d := newDisk()
	d.closed = make(chan struct{}, 1<<20)
	own := row("private", d, "")
	own.Private = true
	s, err := New(config(row("a", d, ""), own))
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		end := make(chan error, 1)
		go func() { end <- s.ServeConn(context.Background(), &recorded{Reader: bytes.NewReader(in)}) }()
		wait(t, "end of the connection", end)
		for {
			select {
			case <-d.closed:
				continue
			default:
			}
			break
		}
		d.expect(t, 1, d.opened)
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, e := range s.exports {
			if e.users != 0 {
				t.Fatalf("export %q is used %d times", e.name, e.users)
			}
		}
	})
}
