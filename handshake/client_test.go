package handshake

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"reflect"
	"strings"
	"testing"

	"nbd.example/nbd/proto"
)

const serverFlags = proto.FlagFixedNewstyle | proto.FlagNoZeroes

// A clientStatement is one testable sentence of the specification about clients:
// a server that tries it, and what the client does.
type clientStatement struct {
	name   string
	script func(s *rawServer)
	run    func(t *testing.T, c *Client)
}

func runClientStatements(t *testing.T, kinds []string, all []clientStatement) {
	for _, s := range all {
		for _, kind := range kinds {
			t.Run("statement "+s.name+"/"+kind, func(t *testing.T) {
				c, err := NewClient(t.Context(), newRawServer(t, kind, s.script))
				if err != nil {
					t.Fatal(err)
				}
				s.run(t, c)
				c.Close()
			})
		}
	}
}

// exportInfo is the data of a NBD_INFO_EXPORT.
func exportInfo(size uint64) []byte {
	return proto.AppendInfoExport(nil, proto.ExportReply{Size: size, Flags: proto.FlagHasFlags})
}

func TestClientSteps(t *testing.T) {
	runClientStatements(t, []string{"pipe", "unix"}, []clientStatement{
		{"55 falls back from GO to EXPORT_NAME", func(s *rawServer) {
			if f := s.greet(serverFlags); f != bothFlags {
				s.t.Errorf("client flags %v", f)
			}
			s.answer(proto.OptExtendedHeaders, proto.RepErrUnsup)
			s.answer(proto.OptStructuredReply, proto.RepErrUnsup)
			s.answer(proto.OptGo, proto.RepErrUnsup)
			if name := s.option(proto.OptExportName); string(name) != "disk" {
				s.t.Errorf("name %q", name)
			}
			s.write(append(proto.AppendExportReply(nil, proto.ExportReply{Size: 4096, Flags: proto.FlagHasFlags}), "early"...))
		}, func(t *testing.T, c *Client) {
			a, err := c.Negotiate(t.Context(), ClientConfig{Export: "disk"})
			if err != nil || a.Export.Size != 4096 || a.Structured || a.Extended {
				t.Fatalf("%+v, %v", a, err)
			}
			if rest := rest(t, a); rest != "early" {
				t.Errorf("behind the answer came %q", rest)
			}
		}},
		{"55 never falls back once extended headers are agreed on", func(s *rawServer) {
			s.greet(serverFlags)
			s.answer(proto.OptExtendedHeaders, proto.RepAck)
			s.answer(proto.OptGo, proto.RepErrUnsup)
			s.answer(proto.OptAbort, proto.RepAck)
			s.gone()
		}, func(t *testing.T, c *Client) {
			if _, err := c.Negotiate(t.Context(), ClientConfig{}); !errors.Is(err, ErrUnsupported) {
				t.Fatal(err)
			}
		}},
		{"55 plain newstyle", func(s *rawServer) {
			if f := s.greet(proto.FlagNoZeroes); f != proto.ClientNoZeroes {
				s.t.Errorf("client flags %v", f)
			}
			s.option(proto.OptExportName)
			s.write(proto.AppendExportReply(nil, proto.ExportReply{Size: 4096}))
		}, func(t *testing.T, c *Client) {
			if _, err := c.List(t.Context()); !errors.Is(err, ErrState) {
				t.Error(err)
			}
			if _, err := c.Negotiate(t.Context(), ClientConfig{}); err != nil {
				t.Fatal(err)
			}
		}},
		{"55 zeroes from a server without NO_ZEROES", func(s *rawServer) {
			if f := s.greet(0); f != 0 {
				s.t.Errorf("client flags %v", f)
			}
			s.option(proto.OptExportName)
			s.write(append(proto.AppendExportReply(nil, proto.ExportReply{Size: 4096}), make([]byte, 124)...))
			s.write([]byte("x"))
		}, func(t *testing.T, c *Client) {
			a, err := c.Negotiate(t.Context(), ClientConfig{})
			if err != nil {
				t.Fatal(err)
			}
			if rest := rest(t, a); rest != "x" {
				t.Errorf("behind the answer came %q", rest)
			}
		}},
		{"55 unknown handshake flags are ignored", func(s *rawServer) {
			if f := s.greet(0xffff); f != bothFlags {
				s.t.Errorf("client flags %v", f)
			}
		}, func(t *testing.T, c *Client) {
			if c.Offered() != 0xffff || !c.Fixed() {
				t.Error(c.Offered())
			}
		}},
		{"55 unknown information, any order, anything unasked", func(s *rawServer) {
			s.greet(serverFlags)
			s.option(proto.OptGo)
			s.reply(proto.OptGo, proto.RepInfo, []byte("\xff\xffwhatever"))
			s.reply(proto.OptGo, proto.RepInfo, proto.AppendInfoString(nil, proto.InfoDescription, "a disk"))
			s.reply(proto.OptGo, proto.RepInfo, proto.AppendInfoBlockSize(nil, proto.BlockSize{Minimum: 1, Preferred: 512, MaxPayload: 512}))
			s.reply(proto.OptGo, proto.RepInfo, exportInfo(8192))
			s.reply(proto.OptGo, proto.RepInfo, []byte("\x00\x04"))
			s.reply(proto.OptGo, proto.RepAck, []byte("no data, it says"))
		}, func(t *testing.T, c *Client) {
			a, err := c.Go(t.Context(), "disk")
			want := ExportInfo{Size: 8192, Flags: proto.FlagHasFlags, Description: "a disk", BlockSize: proto.BlockSize{Minimum: 1, Preferred: 512, MaxPayload: 512}, BlockSizeTold: true}
			if err != nil || a.Export != want {
				t.Fatalf("%+v, %v", a, err)
			}
			if err := c.StructuredReply(t.Context()); !errors.Is(err, ErrState) {
				t.Errorf("an option after GO: %v", err)
			}
		}},
		{"55 a request for information is not repeated", func(s *rawServer) {
			s.greet(serverFlags)
			if r, _ := proto.ParseInfoRequest(s.option(proto.OptInfo)); !reflect.DeepEqual(r.Requests, []proto.Info{3, 1}) {
				s.t.Errorf("requests %v", r.Requests)
			}
			s.reply(proto.OptInfo, proto.RepInfo, exportInfo(1))
			s.reply(proto.OptInfo, proto.RepAck, nil)
		}, func(t *testing.T, c *Client) {
			if _, err := c.Info(t.Context(), "", 3, 1, 3, 1, 1); err != nil {
				t.Fatal(err)
			}
		}},
		{"56 without block sizes 512 and 32 MiB", func(s *rawServer) {
			s.greet(serverFlags)
			s.answer(proto.OptExtendedHeaders, proto.RepErrUnsup)
			s.answer(proto.OptStructuredReply, proto.RepErrPolicy)
			if r, _ := proto.ParseInfoRequest(s.option(proto.OptGo)); len(r.Requests) == 0 || r.Requests[0] != proto.InfoBlockSize {
				s.t.Errorf("GO asks %v", r.Requests)
			}
			s.reply(proto.OptGo, proto.RepInfo, exportInfo(1<<30))
			s.reply(proto.OptGo, proto.RepAck, nil)
		}, func(t *testing.T, c *Client) {
			a, err := c.Negotiate(t.Context(), ClientConfig{Contexts: []string{"base:allocation"}})
			if err != nil || a.Export.BlockSizeTold || a.Export.BlockSize != (proto.BlockSize{Minimum: 512, Preferred: 4096, MaxPayload: 1 << 25}) {
				t.Fatalf("%+v, %v", a, err)
			}
		}},
		{"56 uses only what was offered", func(s *rawServer) {
			s.greet(serverFlags)
			s.answer(proto.OptStructuredReply, proto.RepErrUnsup)
			s.answer(proto.OptExtendedHeaders, proto.RepAck)
			s.gone()
		}, func(t *testing.T, c *Client) {
			if err := c.StructuredReply(t.Context()); !errors.Is(err, ErrUnsupported) {
				t.Error(err)
			}
			if _, err := c.SetMetaContext(t.Context(), "disk", "base:allocation"); !errors.Is(err, ErrState) {
				t.Errorf("contexts without chunks: %v", err)
			}
			if err := c.ExtendedHeaders(t.Context()); err != nil {
				t.Error(err)
			}
			if err := c.StructuredReply(t.Context()); !errors.Is(err, ErrState) {
				t.Errorf("structured replies after extended headers: %v", err)
			}
			if _, err := c.ExportName(t.Context(), "disk"); !errors.Is(err, ErrState) {
				t.Errorf("EXPORT_NAME after extended headers: %v", err)
			}
			if _, err := c.Go(t.Context(), "a\x00b"); !errors.Is(err, ErrState) {
				t.Errorf("a name with a NUL: %v", err)
			}
		}},
		{"56 contexts of a failed SET do not count", func(s *rawServer) {
			s.greet(serverFlags)
			s.answer(proto.OptStructuredReply, proto.RepAck)
			for range 2 {
				s.option(proto.OptSetMetaContext)
				s.reply(proto.OptSetMetaContext, proto.RepMetaContext, proto.AppendMetaContext(nil, &proto.MetaContext{ID: 5, Name: "base:allocation"}))
				s.reply(proto.OptSetMetaContext, proto.RepAck, nil)
			}
			s.option(proto.OptSetMetaContext)
			s.reply(proto.OptSetMetaContext, proto.RepMetaContext, proto.AppendMetaContext(nil, &proto.MetaContext{ID: 5, Name: "base:allocation"}))
			s.reply(proto.OptSetMetaContext, proto.RepErrTooBig, nil)
			s.option(proto.OptGo)
			s.reply(proto.OptGo, proto.RepInfo, exportInfo(1))
			s.reply(proto.OptGo, proto.RepAck, nil)
		}, func(t *testing.T, c *Client) {
			c.StructuredReply(t.Context())
			for i, ok := range []bool{true, true, false} {
				if got, err := c.SetMetaContext(t.Context(), "disk", "base:allocation"); (err == nil) != ok || (len(got) == 1) != ok {
					t.Fatalf("%d: %v, %v", i, got, err)
				}
			}
			if a, err := c.Go(t.Context(), "disk"); err != nil || len(a.Contexts) != 0 {
				t.Fatalf("%+v, %v", a, err)
			}
		}},
		{"59 ERR_SHUTDOWN means a soft disconnect", func(s *rawServer) {
			s.greet(serverFlags)
			s.answer(proto.OptExtendedHeaders, proto.RepErrShutdown)
			s.answer(proto.OptAbort, proto.RepAck)
			s.gone()
		}, func(t *testing.T, c *Client) {
			if _, err := c.Negotiate(t.Context(), ClientConfig{}); !errors.Is(err, ErrShutdown) {
				t.Fatal(err)
			}
		}},
		{"59 after ERR_SHUTDOWN nothing but ABORT is sent", func(s *rawServer) {
			s.greet(serverFlags)
			s.answer(proto.OptList, proto.RepErrShutdown)
			s.option(proto.OptAbort) // and no answer
		}, func(t *testing.T, c *Client) {
			if _, err := c.List(t.Context()); !errors.Is(err, ErrShutdown) {
				t.Error(err)
			}
			if _, err := c.Go(t.Context(), "disk"); !errors.Is(err, ErrShutdown) {
				t.Error(err)
			}
			if err := c.Abort(t.Context()); err != nil {
				t.Error(err)
			}
		}},
	})
}

// rest reads what the server sent behind its last reply.
func rest(t *testing.T, a *Agreement) string {
	b, err := io.ReadAll(io.MultiReader(bytes.NewReader(a.Early), a.Conn))
	if err != nil {
		t.Error(err)
	}
	a.Conn.Close()
	return string(b)
}

func TestClientTLS(t *testing.T) {
	upgrade := func(s *rawServer, c *tls.Config) {
		s.answer(proto.OptStartTLS, proto.RepAck)
		x := tls.Server(s.conn, c)
		if err := x.Handshake(); err == nil {
			s.conn = x
		}
	}
	// Over a pipe, which holds no bytes, a client that sends its alert while the
	// server still writes would wait forever.
	runClientStatements(t, []string{"unix"}, []clientStatement{
		{"57 TLS is demanded and refused", func(s *rawServer) {
			s.greet(serverFlags)
			s.answer(proto.OptStartTLS, proto.RepErrPolicy)
			s.answer(proto.OptAbort, proto.RepAck)
			s.gone()
		}, func(t *testing.T, c *Client) {
			if _, err := c.Negotiate(t.Context(), ClientConfig{TLS: clientTLS()}); !errors.Is(err, ErrPolicy) {
				t.Fatal(err)
			}
		}},
		{"57 TLS is demanded of a plain newstyle server", func(s *rawServer) {
			s.greet(0)
			s.gone()
		}, func(t *testing.T, c *Client) {
			if _, err := c.Negotiate(t.Context(), ClientConfig{TLS: clientTLS()}); !errors.Is(err, ErrUnsupported) {
				t.Fatal(err)
			}
		}},
		{"57 TLS is optional and refused", func(s *rawServer) {
			s.greet(serverFlags)
			s.answer(proto.OptStartTLS, proto.RepErrUnsup)
			s.answer(proto.OptExtendedHeaders, proto.RepErrTLSReqd)
			s.answer(proto.OptAbort, proto.RepAck)
			s.gone()
		}, func(t *testing.T, c *Client) {
			if _, err := c.Negotiate(t.Context(), ClientConfig{TLS: clientTLS(), TLSOptional: true}); !errors.Is(err, ErrTLSRequired) {
				t.Fatal(err)
			}
		}},
		{"57 STARTTLS comes first, and once", func(s *rawServer) {
			s.greet(serverFlags)
			upgrade(s, serverTLS())
			s.answer(proto.OptExtendedHeaders, proto.RepAck)
			s.option(proto.OptGo)
			s.reply(proto.OptGo, proto.RepInfo, exportInfo(1))
			s.reply(proto.OptGo, proto.RepAck, nil)
		}, func(t *testing.T, c *Client) {
			a, err := c.Negotiate(t.Context(), ClientConfig{TLS: clientTLS()})
			if err != nil || a.TLS == nil {
				t.Fatalf("%+v, %v", a, err)
			}
			if _, ok := a.Conn.(*tls.Conn); !ok {
				t.Errorf("connection %T", a.Conn)
			}
			if err := c.StartTLS(t.Context(), clientTLS()); !errors.Is(err, ErrState) {
				t.Error(err)
			}
		}},
		{"57 the name fails", func(s *rawServer) {
			s.greet(serverFlags)
			upgrade(s, serverTLS())
			s.gone()
		}, func(t *testing.T, c *Client) {
			config := clientTLS()
			config.ServerName = "another"
			_, err := c.Negotiate(t.Context(), ClientConfig{TLS: config, TLSOptional: true})
			if bad := new(tls.CertificateVerificationError); !errors.As(err, &bad) {
				t.Fatal(err)
			}
		}},
		{"57 without a name nothing is sent", func(s *rawServer) {
			s.greet(serverFlags)
			s.gone()
		}, func(t *testing.T, c *Client) {
			if err := c.StartTLS(t.Context(), &tls.Config{RootCAs: testPKI().pool}); !errors.Is(err, ErrState) {
				t.Fatal(err)
			}
		}},
		{"57 clear bytes behind the answer", func(s *rawServer) {
			s.greet(serverFlags)
			s.option(proto.OptStartTLS)
			b := proto.AppendOptionReply(nil, proto.OptStartTLS, proto.RepAck, nil)
			s.write(proto.AppendOptionReply(b, proto.OptExtendedHeaders, proto.RepAck, nil))
			s.gone()
		}, func(t *testing.T, c *Client) {
			if _, err := c.Negotiate(t.Context(), ClientConfig{TLS: clientTLS(), TLSOptional: true}); !errors.Is(err, ErrProtocol) {
				t.Fatal(err)
			}
		}},
		{"57 STARTTLS forgets", func(s *rawServer) {
			s.greet(serverFlags)
			s.answer(proto.OptStructuredReply, proto.RepAck)
			upgrade(s, serverTLS())
			s.option(proto.OptExportName)
			s.write(proto.AppendExportReply(nil, proto.ExportReply{Size: 4096}))
		}, func(t *testing.T, c *Client) {
			if err := c.StructuredReply(t.Context()); err != nil {
				t.Fatal(err)
			}
			if err := c.StartTLS(t.Context(), clientTLS()); err != nil {
				t.Fatal(err)
			}
			if a, err := c.ExportName(t.Context(), "disk"); err != nil || a.Structured {
				t.Fatalf("%+v, %v", a, err)
			}
		}},
	})
}

// Servers that break rules: the client leaves, and says what was wrong.
func TestClientViolations(t *testing.T) {
	answer := func(replies ...func(s *rawServer)) func(*rawServer) {
		return func(s *rawServer) {
			s.greet(serverFlags)
			s.option(proto.OptInfo)
			for _, r := range replies {
				r(s)
			}
			s.gone()
		}
	}
	reply := func(r proto.OptionReply, data string) func(*rawServer) {
		return func(s *rawServer) { s.reply(proto.OptInfo, r, []byte(data)) }
	}
	raw := func(b string) func(*rawServer) { return func(s *rawServer) { s.write([]byte(b)) } }
	for name, script := range map[string]func(*rawServer){
		"no INFO_EXPORT":       answer(reply(proto.RepInfo, "\x00\x01disk"), reply(proto.RepAck, "")),
		"short INFO_EXPORT":    answer(reply(proto.RepInfo, "\x00\x00disk")),
		"short info":           answer(reply(proto.RepInfo, "\x00")),
		"bad block size":       answer(reply(proto.RepInfo, "\x00\x03\x00\x00\x00\x03\x00\x00\x10\x00\x00\x10\x00\x00")),
		"name with NUL":        answer(reply(proto.RepInfo, "\x00\x01a\x00b")),
		"reply that is absurd": answer(reply(proto.RepServer, "\x00\x00\x00\x00")),
		"other option":         answer(func(s *rawServer) { s.reply(proto.OptGo, proto.RepAck, nil) }),
		"wrong magic":          answer(raw("\x00\x03\xe8\x89\x04\x55\x65\xaa" + strings.Repeat("\x00", 12))),
		"endless reply":        answer(raw("\x00\x03\xe8\x89\x04\x55\x65\xa9\x00\x00\x00\x06\x00\x00\x00\x03\xff\xff\xff\xff")),
	} {
		t.Run(name, func(t *testing.T) {
			c, err := NewClient(t.Context(), newRawServer(t, "unix", script))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := c.Info(t.Context(), "disk"); !errors.Is(err, ErrProtocol) || !strings.Contains(err.Error(), "peer sent") {
				t.Fatal(err)
			}
			if _, err := c.List(t.Context()); !errors.Is(err, ErrProtocol) {
				t.Errorf("the client goes on: %v", err)
			}
			c.Abort(t.Context())
		})
	}
}

func TestClientGreeting(t *testing.T) {
	for name, c := range map[string]struct {
		greeting string
		want     error
	}{
		"oldstyle":    {"NBDMAGIC\x00\x00\x42\x02\x81\x86\x12\x53\x00\x00", proto.ErrOldstyle},
		"another":     {"220 mail.example ESMTP ready\r\n", ErrProtocol},
		"nothing":     {"", ErrHungUp},
		"half of one": {"NBDMAGICIHA", io.ErrUnexpectedEOF},
	} {
		t.Run(name, func(t *testing.T) {
			conn := newRawServer(t, "unix", func(s *rawServer) { s.write([]byte(c.greeting)) })
			if _, err := NewClient(t.Context(), conn); !errors.Is(err, c.want) {
				t.Errorf("%v, want %v", err, c.want)
			}
		})
	}
}

// A server that answers LIST without end does not fill our memory.
func TestClientListIsBounded(t *testing.T) {
	c, err := NewClient(t.Context(), newRawServer(t, "unix", func(s *rawServer) {
		s.greet(serverFlags)
		s.option(proto.OptList)
		entry := proto.AppendServerReply(nil, &proto.ServerReply{Export: strings.Repeat("e", 4000), Description: strings.Repeat("d", 4000)})
		b := proto.AppendOptionReply(nil, proto.OptList, proto.RepServer, entry)
		for sent := 0; sent < 2*maxAnswer; sent += len(b) {
			if _, err := s.conn.Write(b); err != nil {
				return
			}
		}
		s.t.Error("the client read it all")
	}))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.List(t.Context()); !errors.Is(err, ErrProtocol) {
		t.Error(err)
	}
	c.Close()
}

func TestReplyErrorIsQuotedAndBounded(t *testing.T) {
	e := &ReplyError{proto.OptGo, proto.RepErrUnknown, "\x1b[31m" + strings.Repeat("x", 5000)}
	if s := e.Error(); len(s) > 400 || strings.Contains(s, "\x1b") || !strings.HasPrefix(s, "server refused NBD_OPT_GO: NBD_REP_ERR_UNKNOWN: ") {
		t.Errorf("%d bytes: %s", len(s), s)
	}
	if !errors.Is(e, ErrUnknown) || errors.Is(e, ErrPolicy) {
		t.Error("wrong kind")
	}
	if errors.Is(&ReplyError{Reply: 1<<31 + 77}, ErrUnknown) {
		t.Error("an unknown error reply stands for a known one")
	}
}

func TestClientRawOption(t *testing.T) {
	c, err := NewClient(t.Context(), newRawServer(t, "unix", func(s *rawServer) {
		s.greet(serverFlags)
		if d := s.option(77); string(d) != "data" {
			s.t.Errorf("data %q", d)
		}
		s.reply(77, 55, []byte("reply"))
		s.reply(77, proto.RepAck, nil)
		s.gone()
	}))
	if err != nil {
		t.Fatal(err)
	}
	var got string
	err = c.Option(t.Context(), 77, []byte("data"), func(r proto.OptionReply, data []byte) error {
		got += r.String() + " " + string(data)
		return nil
	})
	if err != nil || !strings.HasSuffix(got, " reply") {
		t.Errorf("%q, %v", got, err)
	}
	if err := c.Option(t.Context(), proto.OptGo, nil, nil); !errors.Is(err, ErrState) {
		t.Error(err)
	}
	c.Close()
	if _, err := c.List(context.Background()); !errors.Is(err, ErrState) {
		t.Error(err)
	}
}
