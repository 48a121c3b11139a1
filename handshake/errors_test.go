package handshake

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"unicode/utf8"

	"nbd.example/nbd/proto"
)

func TestCleanMakesStringsOfTheProtocol(t *testing.T) {
	for _, s := range []string{
		"", "plain", "a\x00b", "\xff\xfe", strings.Repeat("x", 5000), strings.Repeat("ä", 2500), "x" + strings.Repeat("ä", 2500),
	} {
		got := clean(s)
		if err := proto.CheckString([]byte(got)); err != nil {
			t.Errorf("%.20q: %v", s, err)
		}
		if ok := proto.CheckString([]byte(s)) == nil; ok && got != s {
			t.Errorf("%.20q was changed to %.20q", s, got)
		}
		if len(s) > proto.MaxString && len(got) < proto.MaxString-utf8.UTFMax {
			t.Errorf("%.20q was cut to %d bytes", s, len(got))
		}
	}
}

// More servers that break rules, in options other than INFO.
func TestClientViolationsElsewhere(t *testing.T) {
	metaContext := func(id byte, name string) []byte { return append([]byte{0, 0, 0, id}, name...) }
	for name, c := range map[string]struct {
		script func(s *rawServer)
		run    func(ctx context.Context, c *Client) error
		want   error
	}{
		"two contexts with one id": {func(s *rawServer) {
			s.answer(proto.OptStructuredReply, proto.RepAck)
			s.option(proto.OptSetMetaContext)
			s.reply(proto.OptSetMetaContext, proto.RepMetaContext, metaContext(1, "base:allocation"))
			s.reply(proto.OptSetMetaContext, proto.RepMetaContext, metaContext(1, "qemu:allocation-depth"))
			s.reply(proto.OptSetMetaContext, proto.RepAck, nil)
			s.gone()
		}, setContexts, ErrProtocol},
		"a misplaced reply to SET": {func(s *rawServer) {
			s.answer(proto.OptStructuredReply, proto.RepAck)
			s.answer(proto.OptSetMetaContext, proto.RepInfo)
			s.gone()
		}, setContexts, ErrProtocol},
		"a reply before the acknowledgement": {func(s *rawServer) {
			s.answer(proto.OptStructuredReply, proto.RepInfo)
			s.gone()
		}, setContexts, ErrProtocol},
		"a misplaced reply to LIST": {func(s *rawServer) {
			s.answer(proto.OptList, proto.RepMetaContext)
			s.gone()
		}, listExports, ErrProtocol},
		"a bad entry in LIST": {func(s *rawServer) {
			s.option(proto.OptList)
			s.reply(proto.OptList, proto.RepServer, []byte("\x00\x00\x00\x05disk"))
			s.gone()
		}, listExports, proto.ErrMalformed},
		"half an answer to EXPORT_NAME": {func(s *rawServer) {
			s.option(proto.OptExportName)
			s.write([]byte{0, 0, 0})
		}, chooseByName, io.ErrUnexpectedEOF},
		"no answer to EXPORT_NAME": {func(s *rawServer) { s.option(proto.OptExportName) }, chooseByName, ErrHungUp},
		"no answer to LIST":        {func(s *rawServer) { s.option(proto.OptList) }, listExports, ErrHungUp},
		"no answer to EXTENDED_HEADERS": {func(s *rawServer) { s.option(proto.OptExtendedHeaders) }, func(ctx context.Context, c *Client) error {
			_, err := c.Negotiate(ctx, ClientConfig{})
			return err
		}, ErrHungUp},
	} {
		t.Run(name, func(t *testing.T) {
			conn := newRawServer(t, "unix", func(s *rawServer) { s.greet(serverFlags); c.script(s) })
			client, err := NewClient(t.Context(), conn)
			must(err)
			if err := c.run(t.Context(), client); !errors.Is(err, c.want) {
				t.Errorf("%v, want %v", err, c.want)
			}
			if err := client.ExtendedHeaders(t.Context()); err == nil || isReply(err) || client.extended {
				t.Errorf("the client goes on: %v", err)
			}
			client.Close()
		})
	}
}

func setContexts(ctx context.Context, c *Client) error {
	if err := c.StructuredReply(ctx); err != nil {
		return err
	}
	_, err := c.SetMetaContext(ctx, "disk", "base:allocation")
	return err
}

func listExports(ctx context.Context, c *Client) error { _, err := c.List(ctx); return err }

func chooseByName(ctx context.Context, c *Client) error {
	_, err := c.ExportName(ctx, "disk")
	return err
}

// A client over TLS keeps the state for its owner, and says goodbye over it.
func TestClientTLSState(t *testing.T) {
	c := newOwnPair(t, forced)
	if c.TLS() != nil {
		t.Error("TLS before STARTTLS")
	}
	must(c.StartTLS(t.Context(), clientTLS()))
	if s := c.TLS(); s == nil || s.ServerName != "server" {
		t.Errorf("TLS state %+v", s)
	}
	if err := c.Abort(t.Context()); err != nil {
		t.Error(err)
	}
}

// newOwnPair connects our client to our server.
func newOwnPair(t *testing.T, change func(*Server, *shelf)) *Client {
	client, server := pair(t, "unix")
	sh := newShelf()
	srv := newServer(sh)
	change(srv, sh)
	done := make(chan struct{})
	go func() {
		defer close(done)
		if _, err := srv.Negotiate(t.Context(), server); err != nil && !errors.Is(err, ErrAborted) {
			t.Errorf("server: %v", err)
		}
		server.Close()
	}()
	t.Cleanup(func() { client.Close(); <-done })
	c, err := NewClient(t.Context(), client)
	must(err)
	return c
}

func TestListFailures(t *testing.T) {
	for err, want := range map[error]proto.OptionReply{
		ErrPolicy: proto.RepErrPolicy, ErrShutdown: proto.RepErrShutdown, ErrTLSRequired: proto.RepErrPolicy, io.ErrNoProgress: proto.RepErrUnknown,
	} {
		c := newRawClient(t, "unix", func(s *Server, _ *shelf) {
			selective(s, nil)
			s.List = func(context.Context, Peer) ([]proto.ServerReply, error) { return nil, err }
		})
		c.greet(bothFlags)
		c.ask(proto.OptList, nil, want)
		c.inStep()
	}
}

func TestMessagesSayWhatTheyAre(t *testing.T) {
	many := proto.InfoRequest{Export: "e"}
	for i := range proto.Info(20) {
		many.Requests = append(many.Requests, i)
	}
	for want, m := range map[string]Message{
		`more`:                          OptionMessage{Option: proto.OptGo, Data: many},
		`malformed`:                     replyMessage(proto.OptGo, proto.RepInfo, []byte{0}),
		`"\x00"`:                        OptionMessage{Option: proto.OptExportName, Data: "\x00"},
		`124 zeroes`:                    ExportNameMessage{Zeroes: true},
		`NBD_OPT_GO with 70000 bytes`:   optionMessage(proto.OptionHeader{Option: proto.OptGo, Length: 70000}, nil),
		`NBD_REP_ERR_POLICY`:            replyMessage(proto.OptList, proto.RepErrPolicy, nil),
		`NBD_INFO_BLOCK_SIZE minimum 0`: ReplyMessage{Reply: proto.RepInfo, Data: proto.InfoReply{Type: proto.InfoBlockSize}},
	} {
		if s := m.String(); !strings.Contains(s, want) || strings.Contains(s, "\x00") {
			t.Errorf("%q lacks %q", s, want)
		}
	}
	for want, m := range map[string]TLSMode{"NOTLS": NoTLS, "SELECTIVETLS": Selective, "FORCEDTLS": Forced, "TLSMode(9)": 9} {
		if m.String() != want {
			t.Errorf("%v, want %v", m, want)
		}
	}
}
