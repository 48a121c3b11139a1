package handshake

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"nbd.example/nbd/proto"
)

// A statement is one testable sentence of the specification about servers.
type statement struct {
	name   string
	change func(*Server, *shelf)
	run    func(c *rawClient)
}

func runStatements(t *testing.T, all []statement) {
	for _, s := range all {
		t.Run("statement "+s.name, func(t *testing.T) {
			bothTransports(t, func(t *testing.T, kind string) { s.run(newRawClient(t, kind, s.change)) })
		})
	}
}

func selective(s *Server, _ *shelf) { s.Mode, s.TLS = Selective, serverTLS() }

func forced(s *Server, _ *shelf) { s.Mode, s.TLS = Forced, serverTLS() }

// tlsOnly makes "disk" an export that is served over TLS only.
func tlsOnly(_ *Server, sh *shelf) {
	sh.open = func(p Peer, name string) error {
		if name == "disk" && p.TLS == nil {
			return ErrTLSRequired
		}
		return nil
	}
}

func TestServerGreeting(t *testing.T) {
	runStatements(t, []statement{
		{"01 greeting", nil, func(c *rawClient) {
			if b := c.read(18); string(b) != "NBDMAGICIHAVEOPT\x00\x03" {
				c.t.Fatalf("greeting %q", b)
			}
		}},
		{"02 unknown client flag drops", nil, func(c *rawClient) {
			c.greet(bothFlags | 1<<7)
			c.dropped(ErrProtocol)
		}},
		{"02 NO_ZEROES that was not offered drops", func(s *Server, _ *shelf) { s.Hide = proto.FlagNoZeroes }, func(c *rawClient) {
			if f := c.greet(bothFlags); f != proto.FlagFixedNewstyle {
				c.t.Errorf("flags %v", f)
			}
			c.dropped(ErrProtocol)
		}},
		{"02 FIXED_NEWSTYLE that was not offered drops", func(s *Server, _ *shelf) { s.Hide = proto.FlagFixedNewstyle }, func(c *rawClient) {
			c.greet(bothFlags)
			c.dropped(ErrProtocol)
		}},
		{"02 a client that leaves without flags is no fault", nil, func(c *rawClient) {
			c.read(18)
			c.conn.Close()
			if err := c.outcome().err; !errors.Is(err, ErrHungUp) {
				c.t.Fatal(err)
			}
		}},
		{"03 zeroes behind EXPORT_NAME without NO_ZEROES", nil, func(c *rawClient) {
			c.greet(proto.ClientFixedNewstyle)
			c.option(proto.OptExportName, []byte("disk"))
			if b := c.read(134); be64(b) != 1<<20 || !zeroes(b[10:]) {
				c.t.Errorf("answer %x", b)
			}
			c.serving()
		}},
		{"03 no zeroes behind EXPORT_NAME with NO_ZEROES", nil, func(c *rawClient) {
			c.greet(bothFlags)
			c.option(proto.OptExportName, []byte("disk"))
			if e := proto.ParseExportReply(c.read(10)); e != (proto.ExportReply{Size: 1 << 20, Flags: diskFlags}) {
				c.t.Errorf("answer %v", e)
			}
			c.serving()
		}},
		{"03 no zeroes behind GO without NO_ZEROES", nil, func(c *rawClient) {
			c.greet(proto.ClientFixedNewstyle)
			c.ask(proto.OptGo, infoData("disk"), proto.RepInfo, proto.RepAck)
			c.serving()
		}},
		{"03 plain newstyle: EXPORT_NAME", nil, func(c *rawClient) {
			c.greet(0)
			c.option(proto.OptExportName, []byte("small"))
			if b := c.read(134); be64(b) != 512 || !zeroes(b[10:]) {
				c.t.Errorf("answer %x", b)
			}
			c.serving()
		}},
		{"03 plain newstyle: anything else drops", nil, func(c *rawClient) {
			c.greet(proto.ClientNoZeroes)
			c.option(proto.OptList, nil)
			c.dropped(ErrProtocol)
		}},
	})
}

func TestServerOptions(t *testing.T) {
	runStatements(t, []statement{
		{"04 unknown option", nil, func(c *rawClient) {
			c.greet(bothFlags)
			c.ask(4, []byte("peek"), proto.RepErrUnsup)
			c.ask(0, nil, proto.RepErrUnsup)
			c.ask(1<<31+5, bytes.Repeat([]byte("x"), maxData+1), proto.RepErrUnsup)
			c.ask(12345, bytes.Repeat([]byte("x"), 3<<20), proto.RepErrUnsup)
			c.inStep()
		}},
		{"04 an option without its magic number drops", nil, func(c *rawClient) {
			c.greet(bothFlags)
			c.write([]byte("IHAVEOPS\x00\x00\x00\x03\x00\x00\x00\x00"))
			c.dropped(ErrProtocol)
		}},
		{"05 unknown export by EXPORT_NAME", nil, func(c *rawClient) {
			c.greet(bothFlags)
			c.option(proto.OptExportName, []byte("nothing"))
			c.dropped(ErrUnknown)
		}},
		{"06 default export by EXPORT_NAME", nil, func(c *rawClient) {
			c.greet(bothFlags)
			c.option(proto.OptExportName, nil)
			c.read(10)
			if r := c.serving(); r.Name != "" || r.Export.Name != "disk" {
				c.t.Errorf("serves %q as %q", r.Export.Name, r.Name)
			}
		}},
		{"06 default export by GO", nil, func(c *rawClient) {
			c.greet(bothFlags)
			got := c.ask(proto.OptGo, infoData("", proto.InfoName), proto.RepInfo, proto.RepInfo, proto.RepAck)
			if i, _ := proto.ParseInfoReply(got[1]); i.Text != "disk" {
				c.t.Errorf("canonical name %q", i.Text)
			}
			c.serving()
		}},
		{"07 ABORT", nil, func(c *rawClient) {
			c.greet(bothFlags)
			c.ask(proto.OptAbort, nil, proto.RepAck)
			c.dropped(ErrAborted)
		}},
		{"07 ABORT with data", nil, func(c *rawClient) {
			c.greet(bothFlags)
			c.ask(proto.OptAbort, []byte("bye"), proto.RepAck)
			c.dropped(ErrAborted)
		}},
		{"07 ABORT with more data than anybody looks at", nil, func(c *rawClient) {
			c.greet(bothFlags)
			c.ask(proto.OptAbort, make([]byte, maxData+5), proto.RepAck)
			c.dropped(ErrAborted)
		}},
		{"08 ABORT and close at once", nil, func(c *rawClient) {
			c.greet(bothFlags)
			c.ask(proto.OptInfo, infoData("disk"), proto.RepInfo, proto.RepAck)
			c.option(proto.OptAbort, nil)
			c.conn.Close()
			if err := c.outcome().err; !errors.Is(err, ErrAborted) || c.shelf.inUse.Load() != 0 {
				c.t.Fatalf("%v, %d exports open", err, c.shelf.inUse.Load())
			}
		}},
		{"08 closing between options is no fault", nil, func(c *rawClient) {
			c.greet(bothFlags)
			c.ask(proto.OptInfo, infoData("disk"), proto.RepInfo, proto.RepAck)
			c.conn.Close()
			if err := c.outcome().err; !errors.Is(err, ErrHungUp) || c.shelf.inUse.Load() != 0 {
				c.t.Fatalf("%v, %d exports open", err, c.shelf.inUse.Load())
			}
		}},
		{"08 closing inside an option is one", nil, func(c *rawClient) {
			c.greet(bothFlags)
			c.write(proto.AppendOption(nil, proto.OptGo, infoData("disk"))[:20])
			c.conn.Close()
			if err := c.outcome().err; err == nil || errors.Is(err, ErrHungUp) {
				c.t.Fatal(err)
			}
		}},
		{"09 LIST with data", nil, func(c *rawClient) {
			c.greet(bothFlags)
			c.ask(proto.OptList, []byte("IHAVEOPT"), proto.RepErrInvalid)
			c.ask(proto.OptList, make([]byte, 1<<20), proto.RepErrInvalid)
			c.inStep()
		}},
		{"10 LIST", nil, func(c *rawClient) {
			c.greet(bothFlags)
			got := c.ask(proto.OptList, nil, proto.RepServer, proto.RepServer, proto.RepAck)
			for i, want := range []proto.ServerReply{{Export: "disk", Description: "a disk"}, {Export: "small"}} {
				if e, err := proto.ParseServerReply(got[i]); e != want || err != nil {
					c.t.Errorf("entry %v, %v; want %v", e, err, want)
				}
			}
			c.inStep()
		}},
		{"10 LIST of ten thousand", func(s *Server, _ *shelf) { s.List = manyExports }, func(c *rawClient) {
			c.greet(bothFlags)
			c.option(proto.OptList, nil)
			for range 10000 {
				if h, data := c.reply(); h.Reply != proto.RepServer || len(data) != 304 {
					c.t.Fatalf("%v with %d bytes", h.Reply, len(data))
				}
			}
			c.want(proto.OptList, proto.RepAck)
			c.inStep()
		}},
		{"11 disabled LIST", func(s *Server, _ *shelf) { s.List = nil }, func(c *rawClient) {
			c.greet(bothFlags)
			c.ask(proto.OptList, nil, proto.RepErrPolicy)
			c.inStep()
		}},
	})
}

// manyExports lists ten thousand exports, and two that cannot be told.
func manyExports(context.Context, Peer) (all []proto.ServerReply, _ error) {
	for i := range 10000 {
		all = append(all, proto.ServerReply{Export: fmt.Sprintf("%0300d", i)})
	}
	return append(all, proto.ServerReply{Export: "a\x00"}, proto.ServerReply{Export: "b", Description: "\xff"}), nil
}

func TestServerInfo(t *testing.T) {
	long := strings.Repeat("n", proto.MaxString+1)
	runStatements(t, []statement{
		{"12 strings that are too long or have a NUL", nil, func(c *rawClient) {
			c.greet(bothFlags)
			for _, name := range []string{long, "a\x00b", "\xff"} {
				c.ask(proto.OptInfo, infoData(name), proto.RepErrInvalid)
				c.ask(proto.OptGo, infoData(name), proto.RepErrInvalid)
			}
			c.ask(proto.OptStructuredReply, nil, proto.RepAck)
			c.ask(proto.OptSetMetaContext, metaData(long), proto.RepErrInvalid)
			c.ask(proto.OptSetMetaContext, metaData("disk", "base:"+long), proto.RepErrInvalid)
			c.ask(proto.OptListMetaContext, metaData("disk", "base:\x00"), proto.RepErrInvalid)
			c.ask(proto.OptGo, infoData(strings.Repeat("n", maxData)), proto.RepErrTooBig)
			c.ask(proto.OptSetMetaContext, metaData(strings.Repeat("n", maxData)), proto.RepErrTooBig)
			c.inStep()
		}},
		{"12 the longest name that is allowed", nil, func(c *rawClient) {
			c.greet(bothFlags)
			c.ask(proto.OptGo, infoData(long[1:]), proto.RepErrUnknown)
			c.inStep()
		}},
		{"12 such strings by EXPORT_NAME drop", nil, func(c *rawClient) {
			c.greet(bothFlags)
			c.option(proto.OptExportName, []byte(long))
			c.dropped(ErrProtocol)
		}},
		{"13 bad inner lengths", nil, func(c *rawClient) {
			c.greet(bothFlags)
			for _, data := range badInfo() {
				c.ask(proto.OptInfo, data, proto.RepErrInvalid)
				c.ask(proto.OptGo, data, proto.RepErrInvalid)
			}
			c.inStep()
		}},
		{"14 INFO_EXPORT though not asked", nil, func(c *rawClient) {
			c.greet(bothFlags)
			for _, o := range []proto.Option{proto.OptInfo, proto.OptGo} {
				got := c.ask(o, infoData("disk"), proto.RepInfo, proto.RepAck)
				i, err := proto.ParseInfoReply(got[0])
				if len(got[0]) != 12 || err != nil || i.Type != proto.InfoExport || i.Export != (proto.ExportReply{Size: 1 << 20, Flags: diskFlags}) {
					c.t.Errorf("%v, %v", i, err)
				}
			}
			c.serving()
		}},
		{"15 unknown information requests", nil, func(c *rawClient) {
			c.greet(bothFlags)
			c.ask(proto.OptInfo, infoData("disk", 4, 99, 65535), proto.RepInfo, proto.RepAck)
			c.ask(proto.OptGo, infoData("disk", 77, proto.InfoDescription, 78), proto.RepInfo, proto.RepInfo, proto.RepAck)
			c.serving()
		}},
		{"16 INFO then GO", nil, func(c *rawClient) {
			c.greet(bothFlags)
			c.ask(proto.OptStructuredReply, nil, proto.RepAck)
			data := infoData("disk", proto.InfoBlockSize, proto.InfoDescription, proto.InfoName)
			replies := []proto.OptionReply{proto.RepInfo, proto.RepInfo, proto.RepInfo, proto.RepInfo, proto.RepAck}
			a := c.ask(proto.OptInfo, data, replies...)
			b := c.ask(proto.OptGo, data, replies...)
			if !reflect.DeepEqual(a, b) {
				c.t.Errorf("INFO tells %q, GO %q", a, b)
			}
			r := c.serving()
			if n := c.shelf.opens.Load(); n != 1 {
				c.t.Errorf("the export was opened %d times", n)
			}
			if !r.BlockSizeAsked || r.Flags != diskFlags|proto.FlagSendDF || r.Options != 3 {
				c.t.Errorf("result %+v", r)
			}
		}},
		{"17 INFO and a failed GO leave haggling usable", nil, func(c *rawClient) {
			c.greet(bothFlags)
			c.ask(proto.OptInfo, infoData("disk"), proto.RepInfo, proto.RepAck)
			c.ask(proto.OptGo, infoData("nothing"), proto.RepErrUnknown)
			if n := c.shelf.inUse.Load(); n != 0 {
				c.t.Errorf("%d exports open", n)
			}
			c.ask(proto.OptGo, infoData("disk"), proto.RepInfo, proto.RepAck)
			c.serving()
		}},
		{"18 unknown export", nil, func(c *rawClient) {
			c.greet(bothFlags)
			c.ask(proto.OptInfo, infoData("nothing", proto.InfoBlockSize), proto.RepErrUnknown)
			got := c.ask(proto.OptGo, infoData("nothing", proto.InfoBlockSize), proto.RepErrUnknown)
			if !strings.Contains(string(got[0]), `"nothing"`) {
				c.t.Errorf("message %q", got[0])
			}
			c.inStep()
		}},
		{"18 errors choose the reply", refusing, func(c *rawClient) {
			c.greet(bothFlags)
			for name, r := range map[string]proto.OptionReply{
				"policy": proto.RepErrPolicy, "shutdown": proto.RepErrShutdown, "tls": proto.RepErrPolicy,
				"broken": proto.RepErrUnknown, "odd": proto.RepErrUnknown,
			} {
				c.ask(proto.OptInfo, infoData(name), r)
			}
			c.inStep()
		}},
		{"19 BLOCK_SIZE", nil, func(c *rawClient) {
			c.greet(bothFlags)
			for name, want := range map[string]proto.BlockSize{"disk": {Minimum: 1, Preferred: 4096, MaxPayload: 1 << 26}, "small": proto.DefaultBlockSize} {
				got := c.ask(proto.OptInfo, infoData(name, proto.InfoBlockSize), proto.RepInfo, proto.RepInfo, proto.RepAck)
				if i, err := proto.ParseInfoReply(got[1]); i.BlockSize != want || err != nil {
					c.t.Errorf("%v, %v; want %v", i, err, want)
				}
			}
			c.inStep()
		}},
		{"19 block sizes that break the rules are never told", func(_ *Server, sh *shelf) { sh.exports["small"].BlockSize.Minimum = 3 }, func(c *rawClient) {
			c.greet(bothFlags)
			c.ask(proto.OptInfo, infoData("small", proto.InfoBlockSize), proto.RepErrUnknown)
			c.inStep()
		}},
		{"20 ERR_BLOCK_SIZE_REQD", nil, func(c *rawClient) {
			c.greet(bothFlags)
			for _, o := range []proto.Option{proto.OptInfo, proto.OptGo} {
				got := c.ask(o, infoData("strict", proto.InfoName), proto.RepInfo, proto.RepErrBlockSizeReqd)
				if i, err := proto.ParseInfoReply(got[0]); i.Type != proto.InfoBlockSize || err != nil {
					c.t.Errorf("%v, %v before the error", i, err)
				}
			}
			c.ask(proto.OptInfo, infoData("strict", proto.InfoBlockSize), proto.RepInfo, proto.RepInfo, proto.RepAck)
			c.ask(proto.OptGo, infoData("strict", proto.InfoBlockSize), proto.RepInfo, proto.RepInfo, proto.RepAck)
			if !c.serving().BlockSizeAsked {
				c.t.Error("BlockSizeAsked is not set")
			}
		}},
		{"20 EXPORT_NAME cannot ask for block sizes", nil, func(c *rawClient) {
			c.greet(bothFlags)
			c.option(proto.OptExportName, []byte("strict"))
			c.dropped(ErrBlockSizeRequired)
		}},
	})
}

// badInfo returns data of INFO that do not add up.
func badInfo() [][]byte {
	good := infoData("disk", proto.InfoName)
	longName := bytes.Clone(good)
	longName[3] = byte(len(good) - 5)
	hugeName := bytes.Clone(good)
	hugeName[0] = 0xff
	return [][]byte{nil, good[:3], good[:5], good[:len(good)-1], append(bytes.Clone(good), 0), append(bytes.Clone(good), 0, 3), longName, hugeName}
}

// refusing makes Open fail in every way.
func refusing(_ *Server, sh *shelf) {
	sh.exports["odd"] = &Export{Name: "a\x00b"}
	sh.open = func(_ Peer, name string) error {
		switch name {
		case "policy":
			return fmt.Errorf("not you: %w", ErrPolicy)
		case "shutdown":
			return ErrShutdown
		case "tls":
			return ErrTLSRequired // never TLS_REQD in NOTLS mode
		case "broken":
			return errors.New("no such file\x00\xff")
		}
		return nil
	}
}
