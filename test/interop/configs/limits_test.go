package configs

import (
	"errors"
	"testing"

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
