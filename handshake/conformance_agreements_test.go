package handshake

import (
	"bytes"
	"crypto/tls"
	"reflect"
	"testing"

	"nbd.example/nbd/proto"
)

func TestServerTLS(t *testing.T) {
	runStatements(t, []statement{
		{"21 STARTTLS in NOTLS mode", nil, func(c *rawClient) {
			c.greet(bothFlags)
			c.ask(proto.OptStartTLS, nil, proto.RepErrPolicy)
			c.inStep()
		}},
		{"21 STARTTLS with data", selective, func(c *rawClient) {
			c.greet(bothFlags)
			c.ask(proto.OptStartTLS, []byte("x"), proto.RepErrInvalid)
			c.ask(proto.OptStartTLS, make([]byte, maxData+1), proto.RepErrInvalid)
			c.inStep()
		}},
		{"21 STARTTLS twice", forced, func(c *rawClient) {
			c.greet(bothFlags)
			c.startTLS()
			c.ask(proto.OptStartTLS, nil, proto.RepErrInvalid)
			c.ask(proto.OptGo, infoData("disk"), proto.RepInfo, proto.RepAck)
			if r := c.serving(); r.Peer.TLS == nil || r.Peer.TLS.Version != tls.VersionTLS13 {
				c.t.Errorf("TLS state %+v", r.Peer.TLS)
			}
		}},
		{"22 FORCEDTLS", forced, func(c *rawClient) {
			c.greet(bothFlags)
			for o := range proto.Option(14) {
				if o != proto.OptExportName && o != proto.OptAbort && o != proto.OptStartTLS {
					c.ask(o, infoData("disk"), proto.RepErrTLSReqd)
				}
			}
			c.ask(proto.OptGo, make([]byte, maxData+1), proto.RepErrTLSReqd)
			if c.shelf.opens.Load() != 0 {
				c.t.Error("an export was opened before TLS")
			}
			c.startTLS()
			c.ask(proto.OptInfo, infoData("disk"), proto.RepInfo, proto.RepAck)
			c.inStep()
		}},
		{"22 FORCEDTLS: ABORT", forced, func(c *rawClient) {
			c.greet(bothFlags)
			c.ask(proto.OptAbort, nil, proto.RepAck)
			c.dropped(ErrAborted)
		}},
		{"22 FORCEDTLS: EXPORT_NAME drops", forced, func(c *rawClient) {
			c.greet(bothFlags)
			c.option(proto.OptExportName, []byte("disk"))
			c.dropped(ErrTLSRequired)
		}},
		{"22 FORCEDTLS: plain newstyle drops", forced, func(c *rawClient) {
			c.greet(0)
			c.option(proto.OptExportName, []byte("disk"))
			c.dropped(ErrTLSRequired)
		}},
		{"22 FORCEDTLS: EXPORT_NAME over TLS", forced, func(c *rawClient) {
			c.greet(bothFlags)
			c.startTLS()
			c.option(proto.OptExportName, []byte("disk"))
			c.read(10)
			c.serving()
		}},
		{"23 SELECTIVETLS", func(s *Server, sh *shelf) { selective(s, sh); tlsOnly(s, sh) }, func(c *rawClient) {
			c.greet(bothFlags)
			c.ask(proto.OptList, nil, proto.RepServer, proto.RepServer, proto.RepAck)
			c.ask(proto.OptStructuredReply, nil, proto.RepAck)
			c.ask(proto.OptInfo, infoData("disk"), proto.RepErrTLSReqd)
			c.ask(proto.OptGo, infoData("disk"), proto.RepErrTLSReqd)
			c.ask(proto.OptListMetaContext, metaData("disk"), proto.RepErrPolicy)
			c.ask(proto.OptSetMetaContext, metaData("disk", "base:allocation"), proto.RepErrPolicy)
			c.ask(999, nil, proto.RepErrUnsup)
			c.ask(proto.OptInfo, infoData("small"), proto.RepInfo, proto.RepAck)
			c.startTLS()
			c.ask(proto.OptGo, infoData("disk"), proto.RepInfo, proto.RepAck)
			c.serving()
		}},
		{"23 SELECTIVETLS: EXPORT_NAME of a TLS-only export drops", func(s *Server, sh *shelf) { selective(s, sh); tlsOnly(s, sh) }, func(c *rawClient) {
			c.greet(bothFlags)
			c.option(proto.OptExportName, []byte("disk"))
			c.dropped(ErrTLSRequired)
		}},
		{"23 SELECTIVETLS: others in clear", func(s *Server, sh *shelf) { selective(s, sh); tlsOnly(s, sh) }, func(c *rawClient) {
			c.greet(bothFlags)
			c.ask(proto.OptGo, infoData("small"), proto.RepInfo, proto.RepAck)
			c.serving()
		}},
		{"23 after TLS never TLS_REQD", func(s *Server, sh *shelf) {
			selective(s, sh)
			sh.open = func(Peer, string) error { return ErrTLSRequired }
		}, func(c *rawClient) {
			c.greet(bothFlags)
			c.startTLS()
			c.ask(proto.OptInfo, infoData("disk"), proto.RepErrPolicy)
			c.inStep()
		}},
		{"24 STARTTLS forgets", selective, func(c *rawClient) {
			c.greet(bothFlags)
			c.ask(proto.OptExtendedHeaders, nil, proto.RepAck)
			c.ask(proto.OptSetMetaContext, metaData("disk", "base:allocation"), proto.RepMetaContext, proto.RepAck)
			c.startTLS()
			if n := c.shelf.inUse.Load(); n != 0 {
				c.t.Errorf("%d exports stayed open over STARTTLS", n)
			}
			c.ask(proto.OptSetMetaContext, metaData("disk", "base:allocation"), proto.RepErrInvalid)
			c.ask(proto.OptGo, infoData("disk"), proto.RepInfo, proto.RepAck)
			if r := c.serving(); r.Structured || r.Extended || len(r.Contexts) != 0 || r.Flags != diskFlags {
				c.t.Errorf("result %+v", r)
			}
		}},
		{"24 clear bytes behind STARTTLS drop", selective, func(c *rawClient) {
			c.greet(bothFlags)
			c.write(proto.AppendOption(proto.AppendOption(nil, proto.OptStartTLS, nil), proto.OptAbort, nil))
			c.dropped(ErrProtocol)
		}},
		{"25 TLS below 1.2", forced, func(c *rawClient) {
			c.greet(bothFlags)
			c.ask(proto.OptStartTLS, nil, proto.RepAck)
			config := clientTLS()
			config.MinVersion, config.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
			if err := tls.Client(c.conn, config).Handshake(); err == nil {
				c.t.Error("a TLS 1.1 handshake succeeded")
			}
			c.dropped(nil)
		}},
		{"25 TLS 1.2", forced, func(c *rawClient) {
			c.greet(bothFlags)
			c.ask(proto.OptStartTLS, nil, proto.RepAck)
			config := clientTLS()
			config.MaxVersion = tls.VersionTLS12
			if err := tls.Client(c.conn, config).Handshake(); err != nil {
				c.t.Error(err)
			}
		}},
	})
}

func TestServerContexts(t *testing.T) {
	ack := []proto.OptionReply{proto.RepAck}
	one := []proto.OptionReply{proto.RepMetaContext, proto.RepAck}
	three := []proto.OptionReply{proto.RepMetaContext, proto.RepMetaContext, proto.RepMetaContext, proto.RepAck}
	runStatements(t, []statement{
		{"26 STRUCTURED_REPLY with data", nil, func(c *rawClient) {
			c.greet(bothFlags)
			c.ask(proto.OptStructuredReply, []byte("x"), proto.RepErrInvalid)
			c.ask(proto.OptGo, infoData("disk"), proto.RepInfo, proto.RepAck)
			if r := c.serving(); r.Structured || r.Flags&proto.FlagSendDF != 0 {
				c.t.Errorf("result %+v", r)
			}
		}},
		{"26 SEND_DF is set once agreed, also for EXPORT_NAME", nil, func(c *rawClient) {
			c.greet(bothFlags)
			c.ask(proto.OptStructuredReply, nil, proto.RepAck)
			c.option(proto.OptExportName, []byte("disk"))
			if e := proto.ParseExportReply(c.read(10)); e.Flags != diskFlags|proto.FlagSendDF {
				c.t.Errorf("flags %v", e.Flags)
			}
			c.serving()
		}},
		{"26 flags that were not agreed on are not told", func(_ *Server, sh *shelf) { sh.exports["disk"].Flags = 0xffff &^ proto.FlagSendWriteZeroes }, func(c *rawClient) {
			c.greet(bothFlags)
			c.ask(proto.OptGo, infoData("disk"), proto.RepInfo, proto.RepAck)
			if r := c.serving(); r.Flags&(proto.FlagSendDF|proto.FlagBlockStatusPayload|proto.FlagSendFastZero) != 0 {
				c.t.Errorf("flags %v", r.Flags)
			}
		}},
		{"27 contexts without structured replies", nil, func(c *rawClient) {
			c.greet(bothFlags)
			c.ask(proto.OptSetMetaContext, metaData("disk", "base:allocation"), proto.RepErrInvalid)
			c.ask(proto.OptListMetaContext, metaData("disk"), proto.RepErrInvalid)
			c.inStep()
		}},
		{"27 a failed SET clears", nil, func(c *rawClient) {
			failures := map[string]proto.OptionReply{
				string(metaData("nothing", "base:allocation")): proto.RepErrUnknown,
				"short":                             proto.RepErrInvalid,
				string(metaData("disk", "nocolon")): proto.RepErrInvalid,
				string(make([]byte, maxData+1)):     proto.RepErrTooBig,
			}
			c.greet(bothFlags)
			c.ask(proto.OptStructuredReply, nil, proto.RepAck)
			for data, r := range failures {
				c.ask(proto.OptSetMetaContext, metaData("disk", "base:allocation"), one...)
				c.ask(proto.OptSetMetaContext, []byte(data), r)
			}
			c.ask(proto.OptGo, infoData("disk"), proto.RepInfo, proto.RepAck)
			if r := c.serving(); len(r.Contexts) != 0 {
				c.t.Errorf("contexts %v", r.Contexts)
			}
		}},
		{"27 zero queries choose none", nil, func(c *rawClient) {
			c.greet(bothFlags)
			c.ask(proto.OptStructuredReply, nil, proto.RepAck)
			c.ask(proto.OptSetMetaContext, metaData("disk", "base:allocation"), one...)
			c.ask(proto.OptSetMetaContext, metaData("disk"), ack...)
			c.ask(proto.OptGo, infoData("disk"), proto.RepInfo, proto.RepAck)
			if r := c.serving(); len(r.Contexts) != 0 {
				c.t.Errorf("contexts %v", r.Contexts)
			}
		}},
		{"27 contexts of another name do not count", nil, func(c *rawClient) {
			c.greet(bothFlags)
			c.ask(proto.OptStructuredReply, nil, proto.RepAck)
			c.ask(proto.OptSetMetaContext, metaData("disk", "base:allocation"), one...)
			c.ask(proto.OptGo, infoData(""), proto.RepInfo, proto.RepAck)
			if r := c.serving(); len(r.Contexts) != 0 {
				c.t.Errorf("contexts %v", r.Contexts)
			}
		}},
		{"28 LIST with zero queries lists all", nil, func(c *rawClient) {
			c.greet(bothFlags)
			c.ask(proto.OptStructuredReply, nil, proto.RepAck)
			for _, data := range c.ask(proto.OptListMetaContext, metaData("disk"), three...)[:3] {
				if m, err := proto.ParseMetaContext(data); m.ID != 0 || err != nil {
					c.t.Errorf("context %v, %v", m, err)
				}
			}
			c.inStep()
		}},
		{"28 wildcards in LIST, not in SET", nil, func(c *rawClient) {
			c.greet(bothFlags)
			c.ask(proto.OptStructuredReply, nil, proto.RepAck)
			for q, name := range map[string]string{"base:": "base:allocation", "qemu:": "qemu:allocation-depth", "x-nbd-instance:": "x-nbd-instance:17"} {
				got := c.ask(proto.OptListMetaContext, metaData("disk", q), one...)
				if m, _ := proto.ParseMetaContext(got[0]); m.Name != name {
					c.t.Errorf("%q lists %q", q, m.Name)
				}
				c.ask(proto.OptSetMetaContext, metaData("disk", q), ack...)
			}
			c.ask(proto.OptListMetaContext, metaData("disk", "base:", "base:allocation"), one...)
			c.inStep()
		}},
		{"28 ids are unique in SET, repeated queries choose once", nil, func(c *rawClient) {
			c.greet(bothFlags)
			c.ask(proto.OptStructuredReply, nil, proto.RepAck)
			ids := map[uint32]string{}
			for _, data := range c.ask(proto.OptSetMetaContext, metaData("disk", "x-nbd-instance:17", "base:allocation", "base:allocation", "qemu:allocation-depth"), three...)[:3] {
				m, _ := proto.ParseMetaContext(data)
				ids[m.ID] = m.Name
			}
			c.ask(proto.OptGo, infoData("disk"), proto.RepInfo, proto.RepAck)
			r := c.serving()
			if len(ids) != 3 || len(r.Contexts) != 3 {
				c.t.Fatalf("told %v, agreed %v", ids, r.Contexts)
			}
			for _, m := range r.Contexts {
				if ids[m.ID] != m.Name {
					c.t.Errorf("told %v, agreed %v", ids, r.Contexts)
				}
			}
		}},
		{"29 unknown namespaces and leaves", nil, func(c *rawClient) {
			c.greet(bothFlags)
			c.ask(proto.OptStructuredReply, nil, proto.RepAck)
			c.ask(proto.OptListMetaContext, metaData("disk", "what:ever", "base:unknown", "what:"), ack...)
			c.ask(proto.OptSetMetaContext, metaData("disk", "what:ever", "base:allocation", "base:unknown"), one...)
			c.ask(proto.OptSetMetaContext, metaData("small", "qemu:allocation-depth"), ack...)
			c.inStep()
		}},
		{"29 bad inner lengths", nil, func(c *rawClient) {
			c.greet(bothFlags)
			c.ask(proto.OptStructuredReply, nil, proto.RepAck)
			good := metaData("disk", "base:allocation")
			tooLong := bytes.Clone(good)
			tooLong[15] = 200
			manyQueries := bytes.Clone(good)
			manyQueries[8] = 0xff
			for _, data := range [][]byte{nil, good[:5], good[:11], good[:len(good)-1], append(bytes.Clone(good), 0), tooLong, manyQueries} {
				c.ask(proto.OptListMetaContext, data, proto.RepErrInvalid)
				c.ask(proto.OptSetMetaContext, data, proto.RepErrInvalid)
			}
			c.ask(proto.OptListMetaContext, metaData("disk", ":leaf"), proto.RepErrInvalid)
			c.ask(proto.OptListMetaContext, metaData("disk", ""), proto.RepErrInvalid)
			c.inStep()
		}},
	})
}

func TestServerExtendedHeaders(t *testing.T) {
	runStatements(t, []statement{
		{"60 EXTENDED_HEADERS", nil, func(c *rawClient) {
			c.greet(bothFlags)
			c.ask(proto.OptExtendedHeaders, []byte("x"), proto.RepErrInvalid)
			c.ask(proto.OptStructuredReply, nil, proto.RepAck)
			c.ask(proto.OptExtendedHeaders, nil, proto.RepAck)
			c.ask(proto.OptStructuredReply, nil, proto.RepErrExtHeaderReqd)
			c.ask(proto.OptSetMetaContext, metaData("disk", "base:allocation"), proto.RepMetaContext, proto.RepAck)
			data := infoData("disk", proto.InfoBlockSize)
			a := c.ask(proto.OptInfo, data, proto.RepInfo, proto.RepInfo, proto.RepAck)
			b := c.ask(proto.OptGo, data, proto.RepInfo, proto.RepInfo, proto.RepAck)
			want := diskFlags | proto.FlagSendDF | proto.FlagBlockStatusPayload
			if r := c.serving(); !r.Extended || r.Flags != want || !reflect.DeepEqual(a, b) {
				c.t.Errorf("result %+v; INFO %x, GO %x", r, a, b)
			}
		}},
		{"60 no BLOCK_STATUS_PAYLOAD without contexts", nil, func(c *rawClient) {
			c.greet(bothFlags)
			c.ask(proto.OptExtendedHeaders, nil, proto.RepAck)
			c.ask(proto.OptSetMetaContext, metaData("small", "base:allocation"), proto.RepMetaContext, proto.RepAck)
			c.ask(proto.OptGo, infoData("disk"), proto.RepInfo, proto.RepAck)
			if r := c.serving(); r.Flags != diskFlags|proto.FlagSendDF {
				c.t.Errorf("flags %v", r.Flags)
			}
		}},
		{"60 EXPORT_NAME is forbidden", nil, func(c *rawClient) {
			c.greet(bothFlags)
			c.ask(proto.OptExtendedHeaders, nil, proto.RepAck)
			c.option(proto.OptExportName, []byte("disk"))
			c.dropped(ErrProtocol)
		}},
	})
}

func TestServerShutdown(t *testing.T) {
	closed := make(chan struct{})
	close(closed)
	shutdown := func(s *Server, _ *shelf) { s.Shutdown = closed }
	runStatements(t, []statement{
		{"53 new options get ERR_SHUTDOWN", shutdown, func(c *rawClient) {
			c.greet(bothFlags)
			for o := range proto.Option(14) {
				if o != proto.OptExportName && o != proto.OptAbort {
					c.ask(o, nil, proto.RepErrShutdown)
				}
			}
			c.ask(proto.OptAbort, nil, proto.RepAck)
			c.dropped(ErrAborted)
		}},
		{"53 EXPORT_NAME drops", shutdown, func(c *rawClient) {
			c.greet(bothFlags)
			c.option(proto.OptExportName, []byte("disk"))
			c.dropped(ErrShutdown)
		}},
	})
}
