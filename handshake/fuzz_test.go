package handshake

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"nbd.example/nbd/proto"
)

// fed is a connection whose peer has said all it will ever say.
type fed struct {
	in  *bytes.Reader
	out bytes.Buffer
}

func (f *fed) Read(p []byte) (int, error)       { return f.in.Read(p) }
func (f *fed) Write(p []byte) (int, error)      { return f.out.Write(p) }
func (f *fed) Close() error                     { return nil }
func (f *fed) LocalAddr() net.Addr              { return &net.UnixAddr{} }
func (f *fed) RemoteAddr() net.Addr             { return &net.UnixAddr{} }
func (f *fed) SetDeadline(time.Time) error      { return nil }
func (f *fed) SetReadDeadline(time.Time) error  { return nil }
func (f *fed) SetWriteDeadline(time.Time) error { return nil }

// recorded returns one side of every conversation in testdata, up to TLS.
func recorded(tb testing.TB, from byte) (all [][]byte) {
	files, err := filepath.Glob("testdata/*.txt")
	must(err)
	for _, path := range files {
		text, err := os.ReadFile(path)
		must(err)
		t, err := parseTranscript(string(text))
		must(err)
		var b []byte
		for _, e := range t.entries {
			if e.from == 'T' {
				break
			}
			if e.from == from {
				b = append(b, e.raw...)
			}
		}
		all = append(all, b)
	}
	if len(all) == 0 {
		tb.Fatal("no recorded conversations")
	}
	return all
}

// FuzzServer feeds a server with bytes. What it answers must be well formed, it
// must close what it opened, and hand over what it did not use.
func FuzzServer(f *testing.F) {
	for _, b := range recorded(f, 'C') {
		for mode := range 3 {
			f.Add(byte(mode), b)
		}
	}
	f.Add(byte(8), []byte("\x00\x00\x00\x00IHAVEOPT\x00\x00\x00\x01\x00\x00\x00\x04diskmore"))
	config := serverTLS()
	f.Fuzz(func(t *testing.T, how byte, in []byte) {
		conn := &fed{in: bytes.NewReader(in)}
		sh := newShelf()
		srv := newServer(sh)
		srv.Mode, srv.TLS = TLSMode(how%3), config
		if srv.Mode == NoTLS && how&8 != 0 {
			srv.Hide = serverFlags
		}
		var written bytes.Buffer
		srv.Trace = func(_ Peer, e Event) {
			if e.String() == "" {
				t.Error("a message without words")
			}
			if e.FromServer {
				written.Write(e.Raw)
			}
		}
		res, err := srv.Negotiate(t.Context(), conn)
		if (res == nil) == (err == nil) {
			t.Fatalf("%+v, %v", res, err)
		}
		open := int32(0)
		if res != nil {
			open = 1
			rest, _ := io.ReadAll(conn.in)
			if !bytes.HasSuffix(in, append(res.Early, rest...)) {
				t.Errorf("handed over %q and %q", res.Early, rest)
			}
		}
		if sh.inUse.Load() != open {
			t.Errorf("%d exports open, %v", sh.inUse.Load(), err)
		}
		if !bytes.HasPrefix(written.Bytes(), conn.out.Bytes()) && res == nil && !bytes.HasPrefix(conn.out.Bytes(), written.Bytes()) {
			t.Error("what was traced is not what was written")
		}
		checkReplies(t, conn.out.Bytes(), srv.offered())
	})
}

// checkReplies parses what a server wrote until TLS or the end of the haggling.
func checkReplies(t *testing.T, b []byte, offered proto.HandshakeFlags) {
	if flags, err := proto.ParseGreeting(b); err != nil || flags != offered {
		t.Fatalf("greeting %v, %v", flags, err)
	}
	for b = b[proto.GreetingSize:]; len(b) >= proto.OptionReplyHeaderSize; {
		h, err := proto.ParseOptionReplyHeader(b)
		if err != nil {
			if len(b) == proto.ExportNameReplySize+proto.ExportNamePadding {
				return
			}
			t.Fatal(err)
		}
		if len(b) < proto.OptionReplyHeaderSize+int(h.Length) {
			t.Fatalf("%v to %v with %d bytes of %d", h.Reply, h.Option, len(b), h.Length)
		}
		data := b[proto.OptionReplyHeaderSize:][:h.Length]
		if m := replyMessage(h.Option, h.Reply, data); m.Err != nil {
			t.Fatal(m)
		}
		b = b[proto.OptionReplyHeaderSize+len(data):]
		if h.Option == proto.OptStartTLS && h.Reply == proto.RepAck {
			return
		}
	}
	if len(b) > 0 && len(b) != proto.ExportNameReplySize {
		t.Fatalf("%d bytes behind the last reply", len(b))
	}
}

// FuzzClient feeds a client with bytes, along the usual way or step by step.
func FuzzClient(f *testing.F) {
	for _, b := range recorded(f, 'S') {
		for how := range 4 {
			f.Add(byte(how), b)
		}
	}
	f.Fuzz(func(t *testing.T, how byte, in []byte) {
		conn := &fed{in: bytes.NewReader(in)}
		setup := Setup{Trace: func(e Event) {
			if e.String() == "" {
				t.Error("a message without words")
			}
		}}
		c, err := setup.Client(t.Context(), conn)
		if err != nil {
			return
		}
		defer c.Close()
		var a *Agreement
		ctx := context.Background()
		switch how % 4 {
		case 0:
			a, err = c.Negotiate(ctx, ClientConfig{Export: "disk", Contexts: []string{"base:allocation"}})
		case 1:
			a, err = c.Negotiate(ctx, ClientConfig{Export: "disk", TLS: clientTLS(), TLSOptional: how&8 != 0})
		case 2:
			a, err = look(ctx, c)
		case 3:
			a, err = c.ExportName(ctx, "disk")
		}
		if (a == nil) == (err == nil) {
			t.Fatalf("%+v, %v", a, err)
		}
		if a == nil {
			return
		}
		if rest, _ := io.ReadAll(conn.in); !bytes.HasSuffix(in, append(a.Early, rest...)) {
			t.Errorf("handed over %q and %q", a.Early, rest)
		}
		if err := a.Export.BlockSize.Check(); err != nil {
			t.Error(err)
		}
		if _, err := c.List(ctx); !errors.Is(err, ErrState) {
			t.Errorf("an option after the end: %v", err)
		}
	})
}

// dribble is a connection that delivers one byte at a time.
type dribble struct{ fed }

func (d *dribble) Read(p []byte) (int, error) { return d.fed.Read(p[:min(1, len(p))]) }

// How the bytes arrive changes nothing, whatever their number: the buffer has to
// move and to grow in all ways.
func TestServerByteByByte(t *testing.T) {
	big := proto.AppendClientFlags(nil, bothFlags)
	for _, n := range []int{0, 1, 4000, 4064, 4079, 4080, 4081, 8192, 30000, maxData, maxData + 1, 100} {
		big = proto.AppendOption(big, 77, make([]byte, n))
	}
	for i, in := range append(recorded(t, 'C'), big) {
		whole := &fed{in: bytes.NewReader(in)}
		single := &dribble{fed{in: bytes.NewReader(in)}}
		a, err1 := newServer(newShelf()).Negotiate(t.Context(), whole)
		b, err2 := newServer(newShelf()).Negotiate(t.Context(), single)
		if !bytes.Equal(whole.out.Bytes(), single.out.Bytes()) || (a == nil) != (b == nil) || (err1 == nil) != (err2 == nil) {
			t.Errorf("conversation %d: %q, %v at once; %q, %v byte by byte", i, whole.out.Bytes(), err1, single.out.Bytes(), err2)
		}
	}
}
