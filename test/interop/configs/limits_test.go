package configs

import (
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"nbd.example/nbd/client"
	"nbd.example/nbd/proto"
	"nbd.example/nbd/test/harness"
)

// raw connects as one who sends what it likes, and gets simple replies.
func raw(t *testing.T, uri string) *client.Raw {
	t.Helper()
	r, err := client.DialRaw(t.Context(), uri, &client.Config{NoExtended: true, NoStructured: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	return r
}

// TestMinBlock: a client that has asked for the block sizes must keep to them.
func TestMinBlock(t *testing.T) {
	unixOnly(t)
	t.Parallel()
	s := harness.Start(t, harness.Config{Exports: "[e]\nexportname = memory:64k\nminblock = 4096\n"})
	r := raw(t, s.URI("e"))
	if got := r.Export.BlockSize.Minimum; got != 4096 {
		t.Errorf("a minimum of %d bytes was told", got)
	}
	for _, c := range []struct {
		off, length uint64
		want        proto.Errno
	}{{512, 4096, proto.EINVAL}, {4096, 512, proto.EINVAL}, {4096, 4096, 0}} {
		if err := r.Send(&client.RawRequest{Request: proto.Request{Command: proto.CmdRead, Offset: c.off, Length: c.length}}); err != nil {
			t.Fatal(err)
		}
		reply, err := r.Receive()
		if err != nil || !errors.Is(reply.Error, c.want) {
			t.Fatalf("%d bytes at %d: %v, %v; want %v", c.length, c.off, reply, err, c.want)
		}
	}
}

// TestLimits shows of the limits of [generic] those that can be seen from outside.
func TestLimits(t *testing.T) {
	unixOnly(t)
	t.Parallel()
	s := harness.Start(t, harness.Config{
		TCP: true, Generic: "maxconnections_client = 1\nstuck_timeout = 1\nmaxpayload = 33554432\n", Exports: "[e]\nexportname = memory:128M\n",
	})
	hello(t, s)
	if n, err := harness.Dial(t, "tcp", s.TCPAddr()).Read(make([]byte, 1)); n != 0 || err == nil {
		t.Errorf("a second connection from one address gets %d bytes, %v", n, err)
	}
	await(t, s.Process, "too many connections from one address", 1)

	r := raw(t, s.URI("e")) // by the unix socket, which does not count
	if got := r.Export.BlockSize.MaxPayload; got != 32<<20 {
		t.Errorf("a maximum of %d bytes was told", got)
	}
	read := &client.RawRequest{Request: proto.Request{Command: proto.CmdRead, Length: 32<<20 + 1}}
	if err := r.Send(read); err != nil {
		t.Fatal(err)
	}
	if reply, err := r.Receive(); err != nil || reply.Error == 0 {
		t.Errorf("a read over the maximum: %v, %v", reply, err)
	}
	read.Length = 32 << 20
	if err := r.Send(read); err != nil { // and never take the answer
		t.Fatal(err)
	}
	await(t, s.Process, "client disconnected", 1)

	quick := harness.Start(t, harness.Config{TCP: true, Generic: "handshake_timeout = 1\n", Exports: "[e]\nexportname = memory:1M\n"})
	if _, err := io.Copy(io.Discard, hello(t, quick)); err != nil { // and say nothing
		t.Errorf("the end of a connection that says nothing: %v", err)
	}
}

// hello connects by TCP, and waits until the server has greeted. An earlier connection may
// not have ended yet, and count.
func hello(t *testing.T, s *harness.Server) net.Conn {
	t.Helper()
	for end := time.Now().Add(patience); ; {
		c := harness.Dial(t, "tcp", s.TCPAddr())
		if err := c.SetDeadline(end); err != nil {
			t.Fatal(err)
		}
		_, err := io.ReadFull(c, make([]byte, 18))
		switch {
		case err == nil:
			return c
		case time.Now().After(end):
			t.Fatal(err)
		}
	}
}
