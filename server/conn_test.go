package server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"nbd.example/nbd/block"
	"nbd.example/nbd/handshake"
	"nbd.example/nbd/proto"
	"nbd.example/nbd/transmission"
)

func TestServe(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			address := "127.0.0.1:0"
			if network == "unix" {
				address = t.TempDir() + "/socket"
			}
			l, err := net.Listen(network, address)
			if err != nil {
				t.Skipf("no %s sockets here: %v", network, err)
			}
			d := newDisk()
			s := newServer(t, Config{Exports: []*Export{{Name: "a", Open: d.open}}}, d)
			served := make(chan error, 1)
			go func() { served <- s.Serve(l) }()

			nc, err := net.Dial(network, l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			c, err := handshake.NewClient(testContext(t), nc)
			if err != nil {
				t.Fatal(err)
			}
			p := &peer{t: t, c: c, nc: nc}
			u := p.use("a")
			u.works()
			u.d.Disconnect(testContext(t))
			if err := s.Shutdown(testContext(t)); err != nil {
				t.Error(err)
			}
			if err := wait(t, "Serve", served); err != nil {
				t.Errorf("Serve: %v", err)
			}
			if err := s.Serve(l); err != nil {
				t.Errorf("Serve after Shutdown: %v", err)
			}
		})
	}
}

func TestServeConn(t *testing.T) {
	d := newDisk()
	s := newServer(t, Config{Exports: []*Export{{Name: "a", Description: "the first", Open: d.open, MinBlock: 512}}}, d)

	u := connect(t, s, nil).use("a")
	u.worksAligned()
	if got := u.a.Export.BlockSize; got != (proto.BlockSize{Minimum: 512, Preferred: 4096, MaxPayload: 64 << 20}) {
		t.Errorf("block size %+v", got)
	}
	if u.a.Export.Size != 1<<20 || u.a.Export.Flags&proto.FlagCanMultiConn == 0 {
		t.Errorf("told %+v", u.a.Export)
	}
	u.leave()

	connect(t, s, nil).abort()

	p := connect(t, s, nil)
	p.nc.Close()
	if err := wait(t, "end", p.end); err != nil {
		t.Errorf("hung up between options: %v", err)
	}

	u = connect(t, s, nil).use("a")
	u.nc.Close()
	if err := wait(t, "end", u.end); !errors.Is(err, transmission.ErrHungUp) {
		t.Errorf("hung up without DISC: %v", err)
	}
}

// worksAligned writes and reads blocks.
func (u *user) worksAligned() {
	u.t.Helper()
	data := bytes.Repeat([]byte("block   "), 64)
	if err := u.do(proto.CmdWrite, 512, data); err != nil {
		u.t.Fatal(err)
	}
	got := make([]byte, 1024)
	if err := u.do(proto.CmdRead, 0, got); err != nil || !bytes.Equal(got[512:], data) {
		u.t.Fatalf("read %.16q, %v", got[512:], err)
	}
}

// A client that did not ask for block sizes was told nothing, and is served
// whatever it asks for.
func TestUnalignedUnlessTold(t *testing.T) {
	d := newDisk()
	s := newServer(t, Config{Exports: []*Export{{Name: "a", Open: d.open, MinBlock: 512}}}, d)
	told := connect(t, s, nil).use("a")
	if err := told.do(proto.CmdWrite, 1, []byte("x")); !errors.Is(err, proto.EINVAL) {
		t.Errorf("unaligned, against what was told: %v", err)
	}
	told.leave()
	p := connect(t, s, nil)
	a, err := p.c.Go(testContext(t), "a")
	if err != nil {
		t.Fatal(err)
	}
	untold := p.begin(a)
	untold.works()
	if err := untold.do(proto.CmdWrite, 1, []byte("x")); err != nil {
		t.Errorf("unaligned, told nothing: %v", err)
	}
	untold.leave()
}

func TestReadOnlyExport(t *testing.T) {
	d := newDisk()
	s := newServer(t, Config{Exports: []*Export{{Name: "a", Open: d.open, ReadOnly: true}}}, d)
	u := connect(t, s, nil).use("a")
	if u.a.Export.Flags&proto.FlagReadOnly == 0 {
		t.Errorf("flags %v", u.a.Export.Flags)
	}
	if err := u.do(proto.CmdWrite, 0, []byte("x")); !errors.Is(err, proto.EPERM) {
		t.Errorf("write: %v", err)
	}
	u.leave()
}

func TestListAndNames(t *testing.T) {
	d := newDisk()
	local := mustRules(t, "127.0.0.0/8")
	exports := []*Export{
		{Name: "b", Description: "second", Open: d.open, Aliases: []string{"", "bee", "b"}},
		{Name: "a", Open: d.open},
		{Name: "secret", Open: d.open, NotListed: true},
		{Name: "local", Open: d.open, Allow: local},
	}
	s := newServer(t, Config{Exports: exports, AllowList: true}, d)
	list := func(addr net.Addr) []proto.ServerReply {
		p := connect(t, s, addr)
		defer p.abort()
		all, err := p.c.List(testContext(t))
		if err != nil {
			t.Fatal(err)
		}
		return all
	}
	inside := []proto.ServerReply{{Export: "b", Description: "second"}, {Export: "a"}, {Export: "local"}}
	if got := list(tcpAddr("127.0.0.1")); !slices.Equal(got, inside) {
		t.Errorf("inside: %v", got)
	}
	if got := list(tcpAddr("10.0.0.1")); !slices.Equal(got, inside[:2]) {
		t.Errorf("outside: %v", got)
	}
	for _, name := range []string{"", "bee", "secret"} {
		connect(t, s, nil).use(name).leave()
	}
	p := connect(t, s, nil)
	if info, err := p.c.Info(testContext(t), "", proto.InfoName); err != nil || info.Name != "b" {
		t.Errorf("the default export: %+v, %v", info, err)
	}
	p.refused("nothing", handshake.ErrUnknown)
	p.abort()

	quiet := newServer(t, Config{Exports: []*Export{{Open: d.open}}})
	p = connect(t, quiet, nil)
	if _, err := p.c.List(testContext(t)); !errors.Is(err, handshake.ErrPolicy) {
		t.Errorf("LIST that is not allowed: %v", err)
	}
	p.abort()
}

func mustRules(t testing.TB, s string) *Rules {
	t.Helper()
	r, err := ParseRules(strings.NewReader(s), "rules")
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// A client that the rules keep out cannot tell the export from one that is not
// there, and nothing is opened for it.
func TestRulesHideExport(t *testing.T) {
	d := newDisk()
	var log logBuffer
	x := &Export{Name: "a", Open: d.open, Private: true, Allow: mustRules(t, "10.0.0.0/8")}
	s := newServer(t, Config{Exports: []*Export{x}, Logger: log.logger()}, d)

	p := connect(t, s, tcpAddr("11.0.0.1"))
	var texts []string
	for _, name := range []string{"a", "b"} {
		_, err := p.c.Go(testContext(t), name)
		var re *handshake.ReplyError
		if !errors.As(err, &re) {
			t.Fatal(err)
		}
		texts = append(texts, fmt.Sprint(re.Reply, strings.ReplaceAll(re.Message, name, "NAME")))
	}
	if texts[0] != texts[1] {
		t.Errorf("the answers differ: %q", texts)
	}
	p.abort()
	if _, n := d.counts(); n != 0 {
		t.Errorf("opened %d times for a client that may not use it", n)
	}
	if l := log.lines("client refused"); len(l) != 2 || !strings.Contains(l[0], "address is not allowed") || !strings.Contains(l[0], "11.0.0.1:1234") {
		t.Errorf("log: %q", l)
	}
	connect(t, s, tcpAddr("::ffff:10.1.2.3")).use("a").leave()
}

func TestPrivateDevices(t *testing.T) {
	d := newDisk()
	var from []string
	x := &Export{Name: "a", Private: true, Open: func(ctx context.Context, c Client) (*block.Device, error) {
		from = append(from, c.Addr.String()) // one connection at a time in this test
		return d.open(ctx, c)
	}}
	s := newServer(t, Config{Exports: []*Export{x}}, d)
	if n, _ := d.counts(); n != 0 {
		t.Errorf("opened before anybody asked")
	}
	one := connect(t, s, tcpAddr("10.0.0.1")).use("a")
	two := connect(t, s, tcpAddr("10.0.0.2")).use("a")
	if n, _ := d.counts(); n != 2 {
		t.Errorf("%d devices for 2 connections", n)
	}
	if one.a.Export.Flags&proto.FlagCanMultiConn != 0 {
		t.Error("CAN_MULTI_CONN on devices that are not shared")
	}
	one.leave()
	if n, _ := d.counts(); n != 1 {
		t.Errorf("%d devices for 1 connection", n)
	}
	two.leave()
	if !slices.Equal(from, []string{"10.0.0.1:1234", "10.0.0.2:1234"}) {
		t.Errorf("opened for %q", from)
	}

	// What the handshake opened and nobody chose is closed, too.
	p := connect(t, s, nil)
	if _, err := p.c.Info(testContext(t), "a"); err != nil {
		t.Fatal(err)
	}
	p.abort()
	if n, _ := d.counts(); n != 0 {
		t.Errorf("%d devices are open after INFO and ABORT", n)
	}

	d.set(func() { d.fail = errors.New("no such thing as /secret/path") })
	p = connect(t, s, nil)
	_, err := p.c.Go(testContext(t), "a")
	if err == nil || strings.Contains(err.Error(), "/secret/path") {
		t.Errorf("a failed open: %v", err)
	}
	d.set(func() { d.fail = nil })
	p.use("a").leave()
}

func TestMaxConnections(t *testing.T) {
	d := newDisk()
	x := &Export{Name: "a", Open: d.open, MaxConnections: 2}
	s := newServer(t, Config{Exports: []*Export{x, {Name: "b", Open: d.open}}}, d)
	one, two := connect(t, s, nil).use("a"), connect(t, s, nil).use("a")
	p := connect(t, s, nil)
	p.refused("a", handshake.ErrPolicy)
	p.use("b").leave()
	one.leave()
	three := connect(t, s, nil).use("a")
	two.leave()
	three.leave()

	// A question counts as long as it can still become a connection.
	asks, uses := connect(t, s, nil), connect(t, s, nil).use("a")
	if _, err := asks.c.Info(testContext(t), "a"); err != nil {
		t.Fatal(err)
	}
	p = connect(t, s, nil)
	p.refused("a", handshake.ErrPolicy)
	if _, err := asks.c.Info(testContext(t), "b"); err != nil {
		t.Fatal(err)
	}
	p.use("a").leave()
	asks.abort()
	uses.leave()
}

func TestMaxConnectionsOfServer(t *testing.T) {
	d := newDisk()
	var log logBuffer
	s := newServer(t, Config{Exports: []*Export{{Name: "a", Open: d.open}}, MaxConnections: 2, Logger: log.logger()}, d)
	one, two := connect(t, s, nil).use("a"), connect(t, s, nil)
	for range 3 {
		here, there := net.Pipe()
		defer here.Close()
		if err := s.ServeConn(context.Background(), there); !errors.Is(err, ErrCrowded) {
			t.Fatalf("the third connection: %v", err)
		}
		if _, err := here.Read(make([]byte, 1)); err == nil {
			t.Error("the third connection was not closed")
		}
	}
	if l := log.lines("too many connections"); len(l) != 1 {
		t.Errorf("log: %q", l)
	}
	two.abort()
	connect(t, s, nil).use("a").leave()
	one.leave()
}

func TestHandshakeTimeout(t *testing.T) {
	s := newServer(t, Config{HandshakeTimeout: time.Millisecond})
	here, there := net.Pipe()
	defer here.Close()
	if err := s.ServeConn(testContext(t), there); !errors.Is(err, context.DeadlineExceeded) && (err == nil || !strings.Contains(err.Error(), "longer than 1ms")) {
		t.Errorf("a client that says nothing: %v", err)
	}
}

func TestServeConnContext(t *testing.T) {
	d := newDisk()
	s := newServer(t, Config{Exports: []*Export{{Name: "a", Open: d.open}}}, d)
	for _, chosen := range []bool{false, true} {
		here, there := net.Pipe()
		defer here.Close()
		ctx, cancel := context.WithCancel(context.Background())
		end := make(chan error, 1)
		go func() { end <- s.ServeConn(ctx, there) }()
		c, err := handshake.NewClient(testContext(t), here)
		if err != nil {
			t.Fatal(err)
		}
		want := context.Canceled
		if chosen {
			want = transmission.ErrDraining
			if _, err := c.Go(testContext(t), "a"); err != nil {
				t.Fatal(err)
			}
		}
		cancel()
		if err := wait(t, "end", end); !errors.Is(err, want) {
			t.Errorf("chosen %v: %v", chosen, err)
		}
	}
}

func TestPanics(t *testing.T) {
	d := newDisk()
	var log logBuffer
	bad := &Export{Name: "bad", Private: true, Open: func(context.Context, Client) (*block.Device, error) { panic("in Open") }, MaxConnections: 1}
	s := newServer(t, Config{Exports: []*Export{{Name: "a", Open: d.open, MaxConnections: 1}, bad}, Logger: log.logger()}, d)
	other := connect(t, s, nil)
	for range 2 { // its place is free again
		p := connect(t, s, nil)
		if _, err := p.c.Go(testContext(t), "bad"); err == nil {
			t.Error("opened what panics")
		}
		p.abort()
	}
	s.serve = func(context.Context, net.Conn, *transmission.Session, *transmission.Config) (transmission.Stats, error) {
		panic("in Serve")
	}
	for range 2 {
		p := connect(t, s, nil)
		if _, err := p.c.Go(testContext(t), "a"); err != nil {
			t.Fatal(err)
		}
		if err := wait(t, "end", p.end); err == nil || !strings.Contains(err.Error(), "in Serve") {
			t.Errorf("after a panic: %v", err)
		}
	}
	if l := log.lines("panic"); len(l) != 2 || !strings.Contains(l[0], "conn_test.go") {
		t.Errorf("log: %q", l)
	}
	other.abort()
}

// TestPanicsBesideConnections has exports panic where no connection is that could end:
// while a device is replaced, measured or closed, and behind the last client.
func TestPanicsBesideConnections(t *testing.T) {
	a, b, c := newDisk(), newLongDisk(), newDisk()
	b.boom = true
	var log logBuffer
	ended := make(chan struct{}, 10)
	exports := func(settings string) []*Export {
		return []*Export{
			{Name: "a", Open: a.open, Settings: settings},
			{Name: "b", Open: b.open},
			{Name: "c", Open: c.open, Begin: func(context.Context, Client) (func(), error) {
				return func() { ended <- struct{}{}; panic("at the end") }, nil
			}},
		}
	}
	s := newServer(t, Config{Exports: exports("1"), Logger: log.logger()}, a, c)
	u := connect(t, s, nil).use("a")
	a.set(func() { a.boom = true })
	if _, err := s.Reload(Config{Exports: exports("2")}); err == nil || !strings.Contains(err.Error(), "in Close") {
		t.Errorf("a reload whose probe panics: %v", err)
	}
	a.set(func() { a.boom = false })
	<-a.closed
	if report, err := s.Reload(Config{Exports: exports("2")}); err != nil || len(report.Pending) != 1 {
		t.Fatalf("%+v, %v", report, err)
	}
	<-a.closed
	a.set(func() { a.boom = true })
	u.leave()
	wait(t, "close", a.closed) // by a goroutine of its own
	p := connect(t, s, nil).use("c")
	p.leave()
	wait(t, "end", ended)
	again := connect(t, s, nil).use("a")
	again.works()
	again.leave()
	for msg, text := range map[string]string{"closing a device": "in Close", "cannot look whether": "in Remeasure", "what follows": "at the end"} {
		if l := log.lines(msg); len(l) == 0 || !strings.Contains(l[0], text) || !strings.Contains(l[0], "_test.go") {
			t.Errorf("log of a panic %s: %q", text, l)
		}
	}
	a.set(func() { a.boom = false })
}

func TestLogs(t *testing.T) {
	d := newDisk()
	var log logBuffer
	s := newServer(t, Config{Exports: []*Export{{Name: "a", Open: d.open}}, Logger: log.logger()}, d)
	u := connect(t, s, tcpAddr("10.0.0.1")).use("a")
	u.works()
	u.leave()
	connect(t, s, nil).abort()

	has := func(msg string, parts ...string) {
		t.Helper()
		l := log.lines(msg)
		if len(l) != 1 {
			t.Fatalf("%d lines with %q", len(l), msg)
		}
		for _, p := range parts {
			if !strings.Contains(l[0], p) {
				t.Errorf("%q is not in %q", p, l[0])
			}
		}
	}
	has("client connected", "level=INFO", "client=10.0.0.1:1234", "export=a", "NBD_FLAG_SEND_FLUSH", "replies=simple")
	has("client disconnected", "level=INFO", "client=10.0.0.1:1234", "export=a", "after=", "errors=0", "read=5", "written=5", `why="the client disconnected"`)
	has("no export chosen", "level=DEBUG", "client=pipe")
}

func TestLogsQuotePeers(t *testing.T) {
	var log logBuffer
	s := newServer(t, Config{Logger: log.logger()})
	p := connect(t, s, nil)
	p.refused("x\nlevel=ERROR msg=forged "+strings.Repeat("y", 4000), handshake.ErrUnknown)
	p.abort()
	l := log.lines("client refused")
	if len(l) != 1 || len(l[0]) > 512 || !strings.Contains(l[0], `x\nlevel`) {
		t.Errorf("log: %q", l)
	}
}
