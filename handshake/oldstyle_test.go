package handshake

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"nbd.example/nbd/internal/testgate"
	"nbd.example/nbd/proto"
)

var takeAll = Setup{Oldstyle: true}

// serveOldstyle runs a server for one oldstyle connection.
func serveOldstyle(t *testing.T, srv *Server, export string) (client net.Conn, done <-chan outcome) {
	client, conn := pair(t, "unix")
	ended := make(chan outcome, 1)
	go func() {
		res, err := srv.NegotiateOldstyle(t.Context(), conn, export)
		if err != nil {
			conn.Close()
		}
		ended <- outcome{res, err}
	}()
	return client, ended
}

// TestOldstyle: our two halves, and what both see, is kept in a golden file.
func TestOldstyle(t *testing.T) {
	for _, c := range []struct{ file, export string }{{"oldstyle", "small"}, {"oldstyle-refused", "nothing"}} {
		fromServer, fromClient := &transcript{about: "Oldstyle: one message."}, &transcript{about: "Oldstyle: one message."}
		sh := newShelf()
		srv := newServer(sh)
		srv.Trace = func(_ Peer, e Event) { fromServer.add(e) }
		conn, done := serveOldstyle(t, srv, c.export)
		setup := takeAll
		setup.Trace = fromClient.add
		fromClient.end = describe(setup.run(t, conn, negotiate(ClientConfig{Contexts: []string{"base:allocation"}})))
		o := <-done
		fromServer.end = fromClient.end
		fromServer.check(t, c.file, *update)
		fromClient.check(t, c.file, false)
		if (o.err != nil) != (c.export == "nothing") {
			t.Errorf("%s: the server ended with %v", c.export, o.err)
		}
		if o.err == nil && (o.res.Structured || o.res.BlockSizeAsked || len(o.res.Early) > 0 || o.res.Name != "small" || sh.inUse.Load() != 1) {
			t.Errorf("the server has %+v, %d exports open", o.res, sh.inUse.Load())
		}
		if o.err != nil && (!errors.Is(o.err, ErrUnknown) || sh.inUse.Load() != 0) {
			t.Errorf("the server ended with %v, %d exports open", o.err, sh.inUse.Load())
		}
	}
}

// TestOldstyleFlags: whatever the export has, nothing is told that needs haggling.
func TestOldstyleFlags(t *testing.T) {
	sh := newShelf()
	sh.exports["disk"].Flags |= proto.FlagSendDF | proto.FlagBlockStatusPayload
	conn, done := serveOldstyle(t, newServer(sh), "disk")
	b := make([]byte, proto.OldstyleSize)
	if _, err := io.ReadFull(conn, b); err != nil {
		t.Fatal(err)
	}
	g, err := proto.ParseOldstyle(b)
	if err != nil || g.Size != 1<<20 || g.Flags != diskFlags || g.Handshake != 0 || !zeroes(b[28:]) {
		t.Errorf("got %+v, %v", g, err)
	}
	if o := <-done; o.err != nil || o.res.Flags != diskFlags {
		t.Errorf("the server has %+v, %v", o.res, o.err)
	}
}

// TestOldstyleRefused: who may not be served finds the connection closed, before
// a byte.
func TestOldstyleRefused(t *testing.T) {
	down := make(chan struct{})
	close(down)
	for name, c := range map[string]struct {
		change func(*Server, *shelf)
		export string
		want   error
	}{
		"FORCEDTLS":       {forced, "disk", ErrTLSRequired},
		"SELECTIVETLS":    {func(s *Server, sh *shelf) { selective(s, sh); tlsOnly(s, sh) }, "disk", ErrTLSRequired},
		"shutdown":        {func(s *Server, _ *shelf) { s.Shutdown = down }, "disk", ErrShutdown},
		"block sizes":     {nil, "strict", ErrBlockSizeRequired},
		"no such export":  {nil, "nothing", ErrUnknown},
		"a stopped start": {func(s *Server, _ *shelf) { s.Open = nil }, "disk", nil},
	} {
		t.Run(name, func(t *testing.T) {
			sh := newShelf()
			srv := newServer(sh)
			if c.change != nil {
				c.change(srv, sh)
			}
			conn, done := serveOldstyle(t, srv, c.export)
			if b, err := io.ReadAll(conn); len(b) > 0 || err != nil {
				t.Errorf("the client got %q, %v", b, err)
			}
			o := <-done
			if o.err == nil || c.want != nil && !errors.Is(o.err, c.want) || sh.inUse.Load() != 0 {
				t.Errorf("the server ended with %v, want %v; %d exports open", o.err, c.want, sh.inUse.Load())
			}
		})
	}
}

// TestOldstyleClient: the client's half refuses oldstyle unless it is allowed, and
// what oldstyle cannot give.
func TestOldstyleClient(t *testing.T) {
	greeting := proto.AppendOldstyle(nil, proto.OldstyleGreeting{Size: 4096, Flags: proto.FlagHasFlags})
	conn := func() net.Conn { return &fed{in: bytes.NewReader(append(bytes.Clone(greeting), "early"...))} }
	ctx := t.Context()

	if _, err := NewClient(ctx, conn()); !errors.Is(err, proto.ErrOldstyle) {
		t.Errorf("not allowed: %v, want ErrOldstyle", err)
	}
	for _, cfg := range []ClientConfig{{Export: "disk"}, {TLS: clientTLS()}} {
		c, err := takeAll.Client(ctx, conn())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Negotiate(ctx, cfg); !errors.Is(err, ErrUnsupported) {
			t.Errorf("%+v: %v, want ErrUnsupported", cfg, err)
		}
	}
	c, err := takeAll.Client(ctx, conn())
	if err != nil || !c.Oldstyle() || c.Fixed() {
		t.Fatal(err)
	}
	if _, err := c.ExportName(ctx, ""); !errors.Is(err, ErrState) {
		t.Errorf("ExportName: %v, want ErrState", err)
	}
	if _, err := c.List(ctx); !errors.Is(err, ErrState) {
		t.Errorf("List: %v, want ErrState", err)
	}
	a, err := c.Negotiate(ctx, ClientConfig{TLS: clientTLS(), TLSOptional: true})
	if err != nil || a.Export.Size != 4096 || string(a.Early) != "early" || a.TLS != nil {
		t.Errorf("%+v, %v", a, err)
	}
	if _, err := c.TakeOldstyle(); !errors.Is(err, ErrState) {
		t.Errorf("a second time: %v, want ErrState", err)
	}
	short := greeting[:proto.OldstyleSize-1]
	if _, err := takeAll.Client(ctx, &fed{in: bytes.NewReader(short)}); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("a greeting that breaks off: %v", err)
	}
	n := newRawServer(t, "unix", func(s *rawServer) { s.greet(serverFlags); s.gone() })
	c, err = takeAll.Client(ctx, n)
	if err != nil || c.Oldstyle() {
		t.Fatalf("a newstyle server: oldstyle %v, %v", c.Oldstyle(), err)
	}
	if _, err := c.TakeOldstyle(); !errors.Is(err, ErrState) {
		t.Errorf("TakeOldstyle with a newstyle server: %v, want ErrState", err)
	}
	c.Close()
}

// Our client against nbdkit -o: recorded with -peer-update, like the others.
func TestOldstylePeer(t *testing.T) { meetOldstyle(t, *peerUpdate) }

func meetOldstyle(t *testing.T, live bool) {
	p := peer{"nbdkit-oldstyle", func(t *testing.T, socket, _ string) *exec.Cmd {
		return exec.Command(testgate.Find("nbdkit"), "-f", "-o", "-U", socket, "memory", "1M")
	}}
	talk := conversation{name: "go", setup: takeAll, run: negotiate(ClientConfig{})}
	meet(t, &p, &talk, live)
}

// The greeting that we send is the one that nbdkit sends, but for what each
// server offers.
func TestOldstyleLikePeer(t *testing.T) {
	text, err := os.ReadFile(filepath.Join("testdata", "peer-nbdkit-oldstyle-go.txt"))
	must(err)
	tr, err := parseTranscript(string(text))
	must(err)
	if len(tr.entries) != 1 {
		t.Fatalf("%d messages, want 1", len(tr.entries))
	}
	theirs, err := proto.ParseOldstyle(tr.entries[0].raw)
	must(err)
	if got := proto.AppendOldstyle(nil, theirs); !bytes.Equal(got, tr.entries[0].raw) {
		t.Errorf("we would send %x, nbdkit sent %x", got, tr.entries[0].raw)
	}
}

// FuzzOldstyleClient feeds a client that takes oldstyle servers.
func FuzzOldstyleClient(f *testing.F) {
	for _, b := range recorded(f, 'S') {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		conn := &fed{in: bytes.NewReader(in)}
		setup := takeAll
		setup.Trace = func(e Event) {
			if strings.TrimSpace(e.String()) == "" {
				t.Error("a message without words")
			}
		}
		c, err := setup.Client(t.Context(), conn)
		if err != nil {
			return
		}
		defer c.Close()
		a, err := c.Negotiate(context.Background(), ClientConfig{})
		if (a == nil) == (err == nil) {
			t.Fatalf("%+v, %v", a, err)
		}
		if a != nil && c.Oldstyle() {
			if rest, _ := io.ReadAll(conn.in); !bytes.Equal(append(a.Early, rest...), in[proto.OldstyleSize:]) {
				t.Errorf("handed over %q and %q", a.Early, rest)
			}
		}
	})
}

func ExampleSetup_oldstyle() {
	client, server := net.Pipe()
	go func() {
		s := &Server{Open: func(context.Context, Peer, string) (*Export, error) {
			return &Export{Name: "disk", Size: 1 << 20, Flags: proto.FlagSendFlush}, nil
		}}
		s.NegotiateOldstyle(context.Background(), server, "disk")
	}()
	setup := Setup{Oldstyle: true}
	c, err := setup.Client(context.Background(), client)
	if err != nil {
		fmt.Println(err)
		return
	}
	a, err := c.Negotiate(context.Background(), ClientConfig{})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer a.Conn.Close()
	fmt.Println(a.Export.Size, a.Export.Flags)
	// Output: 1048576 NBD_FLAG_HAS_FLAGS|NBD_FLAG_SEND_FLUSH
}
