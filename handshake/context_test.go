package handshake

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"testing"
	"testing/synctest"
	"time"

	"nbd.example/nbd/proto"
)

// stages are where a negotiation can come to a stop because the peer does
// nothing more. Each leads the peer there; the clock is synctest's, which fails
// a test that leaves a goroutine behind.
var serverStages = map[string]func(conn net.Conn){
	"greeting": func(net.Conn) {},
	"flags":    func(conn net.Conn) { io.CopyN(io.Discard, conn, 18) },
	"half the flags": func(conn net.Conn) {
		io.CopyN(io.Discard, conn, 18)
		conn.Write([]byte{0, 0})
	},
	"option": func(conn net.Conn) {
		io.CopyN(io.Discard, conn, 18)
		conn.Write([]byte{0, 0, 0, 3})
	},
	"option's data": func(conn net.Conn) {
		io.CopyN(io.Discard, conn, 18)
		conn.Write(append([]byte{0, 0, 0, 3}, proto.AppendOption(nil, proto.OptGo, infoData("disk"))[:20]...))
	},
	"unread data": func(conn net.Conn) {
		io.CopyN(io.Discard, conn, 18)
		conn.Write([]byte("\x00\x00\x00\x03IHAVEOPT\x00\x00\x00\x55\xff\xff\xff\xffabc"))
	},
	"reply": func(conn net.Conn) {
		io.CopyN(io.Discard, conn, 18)
		conn.Write(append([]byte{0, 0, 0, 3}, proto.AppendOption(nil, proto.OptInfo, infoData("disk"))...))
	},
	"TLS": func(conn net.Conn) {
		io.CopyN(io.Discard, conn, 18)
		conn.Write(append([]byte{0, 0, 0, 3}, proto.AppendOption(nil, proto.OptStartTLS, nil)...))
		io.CopyN(io.Discard, conn, 20)
		conn.Write([]byte{22, 3, 1}) // the beginning of a record
	},
	"option over TLS": func(conn net.Conn) {
		io.CopyN(io.Discard, conn, 18)
		conn.Write(append([]byte{0, 0, 0, 3}, proto.AppendOption(nil, proto.OptStartTLS, nil)...))
		io.CopyN(io.Discard, conn, 20)
		x := tls.Client(conn, clientTLS())
		must(x.Handshake())
		x.Write([]byte("IHAVE"))
	},
}

// contexts end in two ways.
var contextEnds = map[string]struct {
	make func(context.Context) (context.Context, context.CancelFunc)
	want error
}{
	"deadline": {func(ctx context.Context) (context.Context, context.CancelFunc) {
		return context.WithTimeout(ctx, 30*time.Second)
	}, context.DeadlineExceeded},
	"cancellation": {func(ctx context.Context) (context.Context, context.CancelFunc) {
		ctx, cancel := context.WithCancel(ctx)
		timer := time.AfterFunc(30*time.Second, cancel)
		return ctx, func() { timer.Stop(); cancel() }
	}, context.Canceled},
}

func TestServerContext(t *testing.T) {
	testPKI() // not in the bubble: it is shared
	for stage, lead := range serverStages {
		for how, end := range contextEnds {
			t.Run(stage+"/"+how, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					client, server := net.Pipe()
					sh := newShelf()
					srv := newServer(sh)
					selective(srv, sh)
					done := make(chan struct{})
					go func() { lead(client); close(done) }()
					ctx, cancel := end.make(t.Context())
					defer cancel()
					from := time.Now()
					res, err := srv.Negotiate(ctx, server)
					if res != nil || !errors.Is(err, end.want) {
						t.Errorf("%v, %v; want %v", res, err, end.want)
					}
					if d := time.Since(from); d != 30*time.Second {
						t.Errorf("it took %v", d)
					}
					if n := sh.inUse.Load(); n != 0 {
						t.Errorf("%d exports open", n)
					}
					server.Close()
					client.Close()
					<-done
				})
			})
		}
	}
}

func TestClientContext(t *testing.T) {
	reply := proto.AppendOptionReply(nil, proto.OptList, proto.RepServer, []byte("\x00\x00\x00\x04disk"))
	for stage, c := range map[string]struct {
		lead func(s *rawServer)
		run  func(ctx context.Context, conn net.Conn) error
	}{
		"greeting": {func(s *rawServer) { s.write([]byte("NBDMAGIC")) }, func(ctx context.Context, conn net.Conn) error {
			_, err := NewClient(ctx, conn)
			return err
		}},
		"reply": {func(s *rawServer) { s.greet(serverFlags); s.option(proto.OptList) }, list1},
		"reply's data": {func(s *rawServer) {
			s.greet(serverFlags)
			s.option(proto.OptList)
			s.write(reply[:25])
		}, list1},
		"next reply": {func(s *rawServer) {
			s.greet(serverFlags)
			s.option(proto.OptList)
			s.write(reply)
		}, list1},
		"sending": {func(s *rawServer) { s.greet(serverFlags) }, list1},
		"TLS": {func(s *rawServer) { s.greet(serverFlags); s.answer(proto.OptStartTLS, proto.RepAck) }, func(ctx context.Context, conn net.Conn) error {
			c, err := NewClient(ctx, conn)
			must(err)
			_, err = c.Negotiate(ctx, ClientConfig{TLS: clientTLS()})
			return err
		}},
	} {
		for how, end := range contextEnds {
			t.Run(stage+"/"+how, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					client, server := net.Pipe()
					done := make(chan struct{})
					go func() { defer close(done); c.lead(&rawServer{t, server}) }()
					ctx, cancel := end.make(t.Context())
					defer cancel()
					from := time.Now()
					if err := c.run(ctx, client); !errors.Is(err, end.want) {
						t.Errorf("%v, want %v", err, end.want)
					}
					if d := time.Since(from); d != 30*time.Second {
						t.Errorf("it took %v", d)
					}
					client.Close()
					server.Close()
					<-done
				})
			})
		}
	}
}

func list1(ctx context.Context, conn net.Conn) error {
	c, err := NewClient(ctx, conn)
	must(err)
	_, err = c.List(ctx)
	return err
}

// When both are through, no deadline is left, and a context that ends later
// touches nothing.
func TestNoDeadlineIsLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server := net.Pipe()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		done := make(chan *Result)
		go func() {
			res, err := newServer(newShelf()).Negotiate(ctx, server)
			if err != nil {
				t.Error(err)
			}
			done <- res
		}()
		c, err := NewClient(ctx, client)
		must(err)
		a, err := c.Negotiate(ctx, ClientConfig{Export: "disk"})
		must(err)
		res := <-done
		cancel()
		time.Sleep(time.Hour) // synctest's
		go func() { res.Conn.Write([]byte("still here")) }()
		b := make([]byte, 10)
		if _, err := io.ReadFull(a.Conn, b); err != nil {
			t.Error(err)
		}
		go func() { a.Conn.Write([]byte("so am I")) }()
		if _, err := io.ReadFull(res.Conn, b[:7]); err != nil {
			t.Error(err)
		}
		a.Conn.Close()
		res.Conn.Close()
	})
}

// A context that is over lets nothing begin.
func TestContextThatIsOver(t *testing.T) {
	client, server := pair(t, "unix")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := newServer(newShelf()).Negotiate(ctx, server); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if _, err := NewClient(ctx, client); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// What the client sends behind GO is handed over, in clear and over TLS.
func TestServerEarly(t *testing.T) {
	early := bytes.Repeat([]byte("request "), 100)
	for _, withTLS := range []bool{false, true} {
		c := newRawClient(t, "unix", selective)
		c.greet(bothFlags)
		if withTLS {
			c.startTLS()
		}
		c.write(append(proto.AppendOption(nil, proto.OptGo, infoData("disk")), early...))
		c.want(proto.OptGo, proto.RepInfo, proto.RepAck)
		r := c.serving()
		c.conn.Close()
		got, _ := io.ReadAll(io.MultiReader(bytes.NewReader(r.Early), r.Conn))
		if !bytes.Equal(got, early) {
			t.Errorf("TLS %t: %d bytes arrived, %d were sent", withTLS, len(got), len(early))
		}
	}
}

// Options that come in one write are all answered.
func TestServerPipelined(t *testing.T) {
	c := newRawClient(t, "unix", nil)
	var b []byte
	b = proto.AppendClientFlags(b, bothFlags)
	for range 50 {
		b = proto.AppendOption(b, proto.OptInfo, infoData("disk", proto.InfoBlockSize))
	}
	b = proto.AppendOption(b, proto.OptAbort, nil)
	c.read(18)
	c.write(b)
	for range 50 {
		c.want(proto.OptInfo, proto.RepInfo, proto.RepInfo, proto.RepAck)
	}
	c.want(proto.OptAbort, proto.RepAck)
	c.dropped(ErrAborted)
}

func TestServerOptionLimit(t *testing.T) {
	c := newRawClient(t, "unix", func(s *Server, _ *shelf) { s.MaxOptions = 3 })
	c.greet(bothFlags)
	for range 3 {
		c.ask(99, nil, proto.RepErrUnsup)
	}
	c.dropped(ErrProtocol)

	c = newRawClient(t, "unix", func(s *Server, _ *shelf) { s.MaxOptions = 3 })
	c.greet(bothFlags)
	c.ask(proto.OptList, nil, proto.RepServer, proto.RepServer, proto.RepAck)
	for range 2 + 2*8 { // a listed export may be looked at
		c.ask(99, nil, proto.RepErrUnsup)
	}
	c.dropped(ErrProtocol)
}

// A panic of the caller's Open leaves nothing open and no timer behind.
func TestServerPanic(t *testing.T) {
	client, server := pair(t, "unix")
	sh := newShelf()
	sh.open = func(_ Peer, name string) error {
		if name == "small" {
			panic("oops")
		}
		return nil
	}
	go func() {
		io.CopyN(io.Discard, client, 18)
		b := proto.AppendClientFlags(nil, bothFlags)
		b = proto.AppendOption(b, proto.OptInfo, infoData("disk"))
		client.Write(proto.AppendOption(b, proto.OptInfo, infoData("small")))
	}()
	defer func() {
		if recover() == nil || sh.inUse.Load() != 0 {
			t.Errorf("%d exports open", sh.inUse.Load())
		}
	}()
	newServer(sh).Negotiate(t.Context(), server)
}

func TestServerMisconfigured(t *testing.T) {
	open := newShelf().Open
	for _, s := range []*Server{
		{}, {Open: open, Mode: Forced}, {Open: open, Mode: 7}, {Open: open, Mode: -1},
		{Open: open, Mode: Forced, TLS: serverTLS(), Hide: proto.FlagFixedNewstyle},
	} {
		client, server := pair(t, "unix")
		if _, err := s.Negotiate(t.Context(), server); err == nil || errors.Is(err, ErrProtocol) {
			t.Errorf("%v: %v", s.Mode, err)
		}
		server.Close()
		if n, _ := client.Read(make([]byte, 1)); n != 0 {
			t.Error("something was sent")
		}
	}
}

// Client certificates, and a resumed session.
func TestClientCertificate(t *testing.T) {
	config := serverTLS()
	config.ClientAuth, config.ClientCAs = tls.RequireAndVerifyClientCert, testPKI().pool
	sh := newShelf()
	srv := newServer(sh)
	srv.Mode, srv.TLS = Forced, config
	try := func(c *tls.Config) (*Result, error) {
		client, server := pair(t, "unix")
		done := make(chan outcome)
		go func() {
			res, err := srv.Negotiate(t.Context(), server)
			server.Close()
			done <- outcome{res, err}
		}()
		c1, err := NewClient(t.Context(), client)
		must(err)
		_, err = c1.Negotiate(t.Context(), ClientConfig{Export: "disk", TLS: c})
		o := <-done
		if (o.err == nil) != (err == nil) {
			t.Errorf("server %v, client %v", o.err, err)
		}
		return o.res, err
	}
	if _, err := try(clientTLS()); err == nil || isReply(err) {
		t.Errorf("without a certificate: %v", err)
	}
	if n := sh.opens.Load(); n != 0 {
		t.Errorf("%d exports were opened before authentication", n)
	}
	c := clientTLS()
	c.Certificates = []tls.Certificate{testPKI().client}
	c.ClientSessionCache = tls.NewLRUClientSessionCache(1)
	for i := range 2 {
		res, err := try(c)
		if err != nil {
			t.Fatal(err)
		}
		if name := res.Peer.TLS.VerifiedChains[0][0].Subject.CommonName; name != "client" {
			t.Errorf("the client is %q", name)
		}
		if res.Peer.TLS.DidResume != (i == 1) {
			t.Errorf("connection %d resumed: %t", i, res.Peer.TLS.DidResume)
		}
	}
}
