package handshake

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/hex"
	"flag"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"nbd.example/nbd/proto"
)

var update = flag.Bool("update", false, "record the transcripts of our own two halves again")

// A transcript is a conversation as it is kept in testdata: for each message a
// comment that says what it is, and a hex dump behind "C" (client) or "S"
// (server). "T" stands for the TLS handshake; what follows it went over TLS. The
// line that begins with "=" is how the conversation ended for the client.
type transcript struct {
	about   string
	entries []entry
	end     string
}

type entry struct {
	from    byte // 'C', 'S' or 'T'
	comment string
	raw     []byte
}

func (t *transcript) add(e Event) {
	n := entry{'C', e.Message.String(), bytes.Clone(e.Raw)}
	if e.FromServer {
		n.from = 'S'
	}
	if _, ok := e.Message.(TLSMessage); ok {
		n = entry{from: 'T', comment: "TLS begins"} // the version is up to the library
	}
	t.entries = append(t.entries, n)
}

func (t *transcript) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "# %s\n", t.about)
	for _, e := range t.entries {
		fmt.Fprintf(&b, "\n# %s\n", e.comment)
		if e.from == 'T' {
			b.WriteString("T\n")
		}
		for line := range strings.Lines(hex.Dump(e.raw)) {
			fmt.Fprintf(&b, "%c %s", e.from, line)
		}
	}
	fmt.Fprintf(&b, "\n= %s\n", t.end)
	return b.String()
}

// parseTranscript reads what String made. A message ends where the next comment begins.
func parseTranscript(text string) (*transcript, error) {
	t := new(transcript)
	var last *entry
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		switch {
		case line == "" || line[0] == '#':
			last = nil
		case line[0] == '=':
			t.end = strings.TrimPrefix(line, "= ")
		case line == "T":
			t.entries = append(t.entries, entry{from: 'T'})
		case len(line) > 60 && (line[0] == 'C' || line[0] == 'S'):
			b, err := hex.DecodeString(strings.ReplaceAll(line[12:60], " ", ""))
			if err != nil {
				return nil, fmt.Errorf("%q: %w", line, err)
			}
			if last == nil {
				t.entries = append(t.entries, entry{from: line[0]})
				last = &t.entries[len(t.entries)-1]
			}
			last.raw = append(last.raw, b...)
		default:
			return nil, fmt.Errorf("what is %q?", line)
		}
	}
	return t, nil
}

// check compares with the file, or writes it.
func (t *transcript) check(tb testing.TB, name string, record bool) {
	tb.Helper()
	path := filepath.Join("testdata", name+".txt")
	if record {
		must(os.WriteFile(path, []byte(t.String()), 0o666))
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		tb.Fatal(err)
	}
	if got := t.String(); got != string(want) {
		g, w := strings.Split(got, "\n"), strings.Split(string(want), "\n")
		for i := range g {
			if i >= len(w) || g[i] != w[i] {
				tb.Fatalf("%s, line %d: got %q, want %q", path, i+1, g[i], strings.Join(w[min(i, len(w)):min(i+1, len(w))], ""))
			}
		}
		tb.Fatalf("%s goes on with %q", path, w[len(g)])
	}
}

// describe says how a conversation ended.
func describe(a *Agreement, err error) string {
	if err != nil {
		return "error: " + err.Error()
	}
	e := a.Export
	return fmt.Sprintf("%q: %d bytes, flags %v, name %q, description %q, block size %v told %t, structured %t, extended %t, contexts %v, TLS %t, early %q",
		a.Name, e.Size, e.Flags, e.Name, e.Description, e.BlockSize, e.BlockSizeTold, a.Structured, a.Extended, a.Contexts, a.TLS != nil, a.Early)
}

// A conversation is what a client does, and whom it meets.
type conversation struct {
	name, about string
	setup       Setup
	change      func(*Server, *shelf)
	run         func(ctx context.Context, c *Client) (*Agreement, error)
}

func negotiate(cfg ClientConfig) func(context.Context, *Client) (*Agreement, error) {
	return func(ctx context.Context, c *Client) (*Agreement, error) { return c.Negotiate(ctx, cfg) }
}

// look asks every question, and then for the export.
func look(ctx context.Context, c *Client) (*Agreement, error) {
	if _, err := c.List(ctx); err != nil && !isReply(err) {
		return nil, err
	}
	if err := c.StructuredReply(ctx); err == nil {
		c.ListMetaContext(ctx, "disk")
		c.ListMetaContext(ctx, "disk", "base:", "x-unknown:leaf")
		c.SetMetaContext(ctx, "disk", "base:allocation", "qemu:allocation-depth")
	} else if !isReply(err) {
		return nil, err
	}
	all := []proto.Info{proto.InfoName, proto.InfoDescription, proto.InfoBlockSize}
	for _, name := range []string{"disk", "nothing"} {
		if _, err := c.Info(ctx, name, all...); err != nil && !isReply(err) {
			return nil, err
		}
	}
	if err := c.Option(ctx, 999, []byte("?"), nil); !isReply(err) {
		return nil, fmt.Errorf("an unknown option: %w", err)
	}
	return c.Go(ctx, "disk", all...)
}

var conversations = []conversation{
	{"go", "A client that takes what it can get.", Setup{}, nil,
		negotiate(ClientConfig{Export: "disk", Contexts: []string{"base:allocation", "x-nbd-instance:17"}, Want: []proto.Info{proto.InfoName, proto.InfoDescription}})},
	{"look", "Every question.", Setup{}, nil, look},
	{"simple", "GO for the default export, simple replies.", Setup{}, nil, negotiate(ClientConfig{NoExtended: true, NoStructured: true})},
	{"plain", "Plain newstyle, with padding.", Setup{Refuse: serverFlags}, nil, negotiate(ClientConfig{Export: "disk"})},
	{"export-name", "EXPORT_NAME with structured replies.", Setup{}, nil, func(ctx context.Context, c *Client) (*Agreement, error) {
		c.StructuredReply(ctx)
		return c.ExportName(ctx, "disk")
	}},
	{"unknown-export-name", "EXPORT_NAME cannot be refused, but the connection dropped.", Setup{}, nil, func(ctx context.Context, c *Client) (*Agreement, error) {
		return c.ExportName(ctx, "nothing")
	}},
	{"strict", "An export that insists on its block sizes.", Setup{}, nil, func(ctx context.Context, c *Client) (*Agreement, error) {
		if _, err := c.Go(ctx, "strict"); !isReply(err) {
			return nil, err
		}
		return c.Go(ctx, "strict", proto.InfoBlockSize)
	}},
	{"forced-tls", "FORCEDTLS: nothing goes without STARTTLS.", Setup{}, forced, func(ctx context.Context, c *Client) (*Agreement, error) {
		c.List(ctx)
		c.ExtendedHeaders(ctx)
		c.Info(ctx, "disk")
		return c.Negotiate(ctx, ClientConfig{Export: "disk", TLS: clientTLS()})
	}},
	{"selective-tls", "SELECTIVETLS: one export needs TLS, and STARTTLS forgets.", Setup{}, func(s *Server, sh *shelf) { selective(s, sh); tlsOnly(s, sh) },
		func(ctx context.Context, c *Client) (*Agreement, error) {
			c.StructuredReply(ctx)
			c.Info(ctx, "small")
			c.Info(ctx, "disk")
			if err := c.StartTLS(ctx, clientTLS()); err != nil {
				return nil, err
			}
			return c.Go(ctx, "disk")
		}},
	{"no-tls", "TLS is wanted where there is none.", Setup{}, nil, negotiate(ClientConfig{Export: "disk", TLS: clientTLS()})},
	{"shutdown", "A server that is about to leave.", Setup{}, func(s *Server, _ *shelf) {
		done := make(chan struct{})
		close(done)
		s.Shutdown = done
	}, negotiate(ClientConfig{Export: "disk"})},
}

// Our own two halves say to each other what the golden files say, and both see
// the same messages.
func TestTranscript(t *testing.T) {
	for _, c := range conversations {
		t.Run(c.name, func(t *testing.T) {
			fromServer, fromClient := converse(t, &c)
			fromServer.end = fromClient.end
			if !*update {
				fromServer.check(t, c.name, false)
			}
			fromClient.check(t, c.name, *update)
		})
	}
}

func converse(t *testing.T, c *conversation) (fromServer, fromClient *transcript) {
	fromServer, fromClient = &transcript{about: c.about}, &transcript{about: c.about}
	client, server := pair(t, "unix")
	sh := newShelf()
	srv := newServer(sh)
	if c.change != nil {
		c.change(srv, sh)
	}
	srv.Trace = func(_ Peer, e Event) { fromServer.add(e) }
	done := make(chan struct{})
	go func() {
		defer close(done)
		if _, err := srv.Negotiate(t.Context(), server); err != nil {
			server.Close()
		}
	}()
	setup := c.setup
	setup.Trace = fromClient.add
	fromClient.end = describe(setup.run(t, client, c.run))
	<-done
	return fromServer, fromClient
}

func (s *Setup) run(t *testing.T, conn net.Conn, f func(context.Context, *Client) (*Agreement, error)) (*Agreement, error) {
	c, err := s.Client(t.Context(), conn)
	if err != nil {
		return nil, err
	}
	a, err := f(t.Context(), c)
	c.Close()
	return a, err
}

// replay is a server that says what the transcript says it said, and checks that
// the client does the same.
func (t *transcript) replay(s *rawServer) {
	for i, e := range t.entries {
		switch e.from {
		case 'S':
			s.write(e.raw)
		case 'C':
			if got := s.read(len(e.raw)); !bytes.Equal(got, e.raw) {
				s.t.Errorf("message %d: the client sent %q, recorded is %q", i, got, e.raw)
				return
			}
		case 'T':
			x := tls.Server(s.conn, serverTLS())
			if err := x.Handshake(); err != nil {
				s.t.Errorf("message %d: TLS: %v", i, err)
				return
			}
			s.conn = x
		}
	}
}

func TestTranscriptFormat(t *testing.T) {
	tr := &transcript{about: "about", end: "the end"}
	tr.add(Event{true, GreetingMessage{serverFlags}, proto.AppendGreeting(nil, serverFlags)})
	tr.add(Event{false, TLSMessage{}, nil})
	tr.add(Event{false, FlagsMessage{}, []byte{0, 0, 0, 0}})
	back, err := parseTranscript(tr.String())
	if err != nil || back.end != tr.end || len(back.entries) != 3 {
		t.Fatalf("%+v, %v", back, err)
	}
	for i, e := range back.entries {
		if e.from != tr.entries[i].from || !bytes.Equal(e.raw, tr.entries[i].raw) {
			t.Errorf("entry %d: %+v, want %+v", i, e, tr.entries[i])
		}
	}
}
