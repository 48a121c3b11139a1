package handshake

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"nbd.example/nbd/proto"
)

// TestMain fails if goroutines of this package are left behind.
func TestMain(m *testing.M) {
	code := m.Run()
	for end := time.Now().Add(10 * time.Second); code == 0; runtime.Gosched() {
		left := ownGoroutines()
		if left == "" {
			break
		}
		if time.Now().After(end) {
			fmt.Fprintf(os.Stderr, "goroutines left behind:\n%s", left)
			code = 1
		}
	}
	os.Exit(code)
}

func ownGoroutines() string {
	buf := make([]byte, 1<<20)
	buf = buf[:runtime.Stack(buf, true)]
	var left strings.Builder
	for i, g := range strings.Split(string(buf), "\n\n") {
		if i > 0 && strings.Contains(g, "nbd/handshake.") {
			left.WriteString(g + "\n\n")
		}
	}
	return left.String()
}

// pki is a certificate authority with a certificate for "server" and one for "client".
type pki struct {
	ca             []byte // DER
	pool           *x509.CertPool
	server, client tls.Certificate
}

var testPKI = sync.OnceValue(func() *pki {
	// Valid since before synctest's clock starts.
	from, to := time.Date(1995, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(2095, 1, 1, 0, 0, 0, 0, time.UTC)
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ca"}, NotBefore: from, NotAfter: to,
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	caKey := newKey()
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, caKey.Public(), caKey)
	must(err)
	caCert, err := x509.ParseCertificate(caDER)
	must(err)
	issue := func(serial int64, name string) tls.Certificate {
		c := &x509.Certificate{SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
			NotBefore: from, NotAfter: to, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
		key := newKey()
		der, err := x509.CreateCertificate(rand.Reader, c, caCert, key.Public(), caKey)
		must(err)
		return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	}
	p := &pki{ca: caDER, pool: x509.NewCertPool(), server: issue(2, "server"), client: issue(3, "client")}
	p.pool.AddCert(caCert)
	return p
})

func newKey() *ecdsa.PrivateKey {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(err)
	return k
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}

func serverTLS() *tls.Config { return &tls.Config{Certificates: []tls.Certificate{testPKI().server}} }

func clientTLS() *tls.Config { return &tls.Config{RootCAs: testPKI().pool, ServerName: "server"} }

// shelf is a set of exports that counts what is open.
type shelf struct {
	exports      map[string]*Export
	opens, inUse atomic.Int32
	open         func(p Peer, name string) error // a further condition
}

func (s *shelf) Open(_ context.Context, p Peer, name string) (*Export, error) {
	if s.open != nil {
		if err := s.open(p, name); err != nil {
			return nil, err
		}
	}
	e := s.exports[name]
	if e == nil {
		return nil, fmt.Errorf("%w: %q", ErrUnknown, name)
	}
	s.opens.Add(1)
	s.inUse.Add(1)
	c := *e
	return &c, nil
}

func (s *shelf) Close(*Export) { s.inUse.Add(-1) }

func (s *shelf) List(context.Context, Peer) ([]proto.ServerReply, error) {
	return []proto.ServerReply{{Export: "disk", Description: "a disk"}, {Export: "small"}}, nil
}

const diskFlags = proto.FlagHasFlags | proto.FlagSendFlush | proto.FlagSendTrim

func newShelf() *shelf {
	disk := &Export{Name: "disk", Description: "a disk", Size: 1 << 20, Flags: diskFlags,
		BlockSize: proto.BlockSize{Minimum: 1, Preferred: 4096, MaxPayload: 1 << 26},
		Contexts:  []string{"base:allocation", "qemu:allocation-depth", "x-nbd-instance:17"}}
	return &shelf{exports: map[string]*Export{
		"disk": disk, "": disk,
		"small":  {Name: "small", Size: 512, Flags: proto.FlagReadOnly, Contexts: []string{"base:allocation"}},
		"strict": {Name: "strict", Size: 8192, BlockSize: proto.BlockSize{Minimum: 4096, Preferred: 4096, MaxPayload: 1 << 25}, RequireBlockSize: true},
	}}
}

func newServer(s *shelf) *Server { return &Server{Open: s.Open, Close: s.Close, List: s.List} }

// pair connects two ends over a kind of transport.
func pair(t testing.TB, kind string) (client, server net.Conn) {
	t.Helper()
	if kind == "pipe" {
		client, server = net.Pipe()
	} else {
		l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
		must(err)
		defer l.Close()
		client, err = net.Dial("unix", l.Addr().String())
		must(err)
		server, err = l.Accept()
		must(err)
	}
	t.Cleanup(func() { client.Close(); server.Close() })
	return client, server
}

// outcome is how a server's negotiation ended.
type outcome struct {
	res *Result
	err error
}

// rawClient is a client that may break every rule.
type rawClient struct {
	t     *testing.T
	conn  net.Conn
	shelf *shelf
	srv   *Server
	done  chan outcome
	end   *outcome
}

// newRawClient starts a server for one connection. The server's end is closed if
// the negotiation fails, as a server must.
func newRawClient(t *testing.T, kind string, change func(*Server, *shelf)) *rawClient {
	c := &rawClient{t: t, shelf: newShelf(), done: make(chan outcome, 1)}
	c.srv = newServer(c.shelf)
	if change != nil {
		change(c.srv, c.shelf)
	}
	var conn net.Conn
	c.conn, conn = pair(t, kind)
	c.conn.SetDeadline(time.Now().Add(20 * time.Second))
	go func() {
		res, err := c.srv.Negotiate(t.Context(), conn)
		if err != nil {
			conn.Close()
		}
		c.done <- outcome{res, err}
	}()
	return c
}

const bothFlags = proto.ClientFixedNewstyle | proto.ClientNoZeroes

// greet reads the greeting and answers with flags.
func (c *rawClient) greet(flags proto.ClientFlags) proto.HandshakeFlags {
	c.t.Helper()
	f, err := proto.ParseGreeting(c.read(proto.GreetingSize))
	if err != nil {
		c.t.Fatal(err)
	}
	c.write(proto.AppendClientFlags(nil, flags))
	return f
}

func (c *rawClient) write(b []byte) {
	c.t.Helper()
	if _, err := c.conn.Write(b); err != nil {
		c.t.Fatalf("write: %v", err)
	}
}

func (c *rawClient) read(n int) []byte {
	c.t.Helper()
	b := make([]byte, n)
	if _, err := io.ReadFull(c.conn, b); err != nil {
		c.t.Fatalf("read: %v", err)
	}
	return b
}

func (c *rawClient) option(o proto.Option, data []byte) {
	c.t.Helper()
	c.write(proto.AppendOption(nil, o, data))
}

func (c *rawClient) reply() (proto.OptionReplyHeader, []byte) {
	c.t.Helper()
	h, err := proto.ParseOptionReplyHeader(c.read(proto.OptionReplyHeaderSize))
	if err != nil {
		c.t.Fatal(err)
	}
	return h, c.read(int(h.Length))
}

// want reads the answer to o, which must consist of these replies, and returns
// their data.
func (c *rawClient) want(o proto.Option, replies ...proto.OptionReply) [][]byte {
	c.t.Helper()
	var all [][]byte
	for i, r := range replies {
		h, data := c.reply()
		if h.Option != o || h.Reply != r {
			c.t.Fatalf("reply %d is %v to %v (%q), want %v to %v", i, h.Reply, h.Option, data, r, o)
		}
		if r == proto.RepAck && len(data) > 0 {
			c.t.Fatalf("an acknowledgement with %d bytes", len(data))
		}
		all = append(all, data)
	}
	return all
}

// ask sends an option and wants this answer.
func (c *rawClient) ask(o proto.Option, data []byte, replies ...proto.OptionReply) [][]byte {
	c.t.Helper()
	c.option(o, data)
	return c.want(o, replies...)
}

// inStep checks that haggling goes on, and ends it.
func (c *rawClient) inStep() {
	c.t.Helper()
	c.ask(999, []byte("data"), proto.RepErrUnsup)
	c.ask(proto.OptAbort, nil, proto.RepAck)
	c.dropped(ErrAborted)
}

// dropped checks that the server sends nothing more, closes the connection for
// the reason why (nil: any), and keeps nothing open.
func (c *rawClient) dropped(why error) error {
	c.t.Helper()
	var b [1]byte
	if n, err := c.conn.Read(b[:]); n != 0 || !hungUp(err) {
		c.t.Fatalf("read %d bytes, %v; want the end", n, err)
	}
	o := c.outcome()
	if o.err == nil || why != nil && !errors.Is(o.err, why) {
		c.t.Fatalf("the server ended with %v, want %v", o.err, why)
	}
	if n := c.shelf.inUse.Load(); n != 0 {
		c.t.Fatalf("%d exports left open", n)
	}
	return o.err
}

func (c *rawClient) outcome() outcome {
	if c.end == nil {
		o := <-c.done
		c.end = &o
	}
	return *c.end
}

// serving checks that the transmission phase has begun with nothing more sent.
func (c *rawClient) serving() *Result {
	c.t.Helper()
	o := c.outcome()
	if o.err != nil {
		c.t.Fatalf("the server ended with %v", o.err)
	}
	// A mark behind the answer shows that there was nothing else.
	go o.res.Conn.Write([]byte("mark"))
	if b := c.read(4); string(b) != "mark" {
		c.t.Fatalf("the server sent %q more", b)
	}
	return o.res
}

// startTLS upgrades.
func (c *rawClient) startTLS() {
	c.t.Helper()
	c.ask(proto.OptStartTLS, nil, proto.RepAck)
	t := tls.Client(c.conn, clientTLS())
	if err := t.Handshake(); err != nil {
		c.t.Fatal(err)
	}
	c.conn = t
}

func infoData(name string, requests ...proto.Info) []byte {
	return proto.AppendInfoRequest(nil, &proto.InfoRequest{Export: name, Requests: requests})
}

func metaData(name string, queries ...string) []byte {
	return proto.AppendMetaContextRequest(nil, &proto.MetaContextRequest{Export: name, Queries: queries})
}

// rawServer is a server that may break every rule.
type rawServer struct {
	t    *testing.T
	conn net.Conn
}

// newRawServer runs script as the server of one connection; the connection is
// closed behind it. The test ends no earlier than the script.
func newRawServer(t *testing.T, kind string, script func(s *rawServer)) net.Conn {
	client, conn := pair(t, kind)
	conn.SetDeadline(time.Now().Add(20 * time.Second))
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer conn.Close()
		script(&rawServer{t, conn})
	}()
	t.Cleanup(func() { client.Close(); <-done })
	return client
}

// greet sends the greeting and returns the client's flags.
func (s *rawServer) greet(f proto.HandshakeFlags) proto.ClientFlags {
	s.write(proto.AppendGreeting(nil, f))
	return proto.ParseClientFlags(s.read(proto.ClientFlagsSize))
}

func (s *rawServer) write(b []byte) {
	if _, err := s.conn.Write(b); err != nil {
		s.t.Errorf("server: write: %v", err)
	}
}

func (s *rawServer) read(n int) []byte {
	b := make([]byte, n)
	if _, err := io.ReadFull(s.conn, b); err != nil {
		s.t.Errorf("server: read: %v", err)
		runtime.Goexit()
	}
	return b
}

// option reads an option, which must be o, and returns its data.
func (s *rawServer) option(o proto.Option) []byte {
	h, err := proto.ParseOptionHeader(s.read(proto.OptionHeaderSize))
	if err != nil || h.Option != o {
		s.t.Errorf("server: got %v (%v), want %v", h.Option, err, o)
		runtime.Goexit()
	}
	return s.read(int(h.Length))
}

func (s *rawServer) reply(o proto.Option, r proto.OptionReply, data []byte) {
	s.write(proto.AppendOptionReply(nil, o, r, data))
}

// answer reads o and gives one reply.
func (s *rawServer) answer(o proto.Option, r proto.OptionReply) {
	s.option(o)
	s.reply(o, r, nil)
}

// gone checks that the client sends nothing more and closes.
func (s *rawServer) gone() {
	var b [1]byte
	if n, err := s.conn.Read(b[:]); n != 0 || !hungUp(err) {
		s.t.Errorf("server: read %d bytes, %v; want the end", n, err)
	}
}

func bothTransports(t *testing.T, f func(t *testing.T, kind string)) {
	for _, kind := range []string{"pipe", "unix"} {
		t.Run(kind, func(t *testing.T) { f(t, kind) })
	}
}

func be64(b []byte) uint64 { return binary.BigEndian.Uint64(b) }

func zeroes(b []byte) bool { return len(bytes.Trim(b, "\x00")) == 0 }
