//go:build linux

package relay

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	mathrand "math/rand/v2"
	"net"
	"os"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"nbd.example/nbd/proto"
)

// forever ends tests that hang.
const forever = time.Minute

var disc = proto.AppendRequest(nil, &proto.Request{Command: proto.CmdDisc})

// serverTLS returns the configuration of a server called "disk.example", and of a client
// that trusts it.
var serverTLS = sync.OnceValues(func() (server, client *tls.Config) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"disk.example"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		panic(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		panic(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(cert)
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}},
		&tls.Config{RootCAs: pool, ServerName: "disk.example"}
})

// gate is a connection that can be held up while it sends.
type gate struct {
	net.Conn
	shut    chan struct{} // closed: sending waits
	waiting chan struct{} // gets a word when something waits
	gone    chan struct{} // closed with the connection
	once    sync.Once
}

func newGate(c net.Conn) *gate {
	return &gate{Conn: c, shut: make(chan struct{}), waiting: make(chan struct{}, 1), gone: make(chan struct{})}
}

func (g *gate) Write(p []byte) (int, error) {
	select {
	case <-g.shut:
		select {
		case g.waiting <- struct{}{}:
		default:
		}
		<-g.gone
		return 0, net.ErrClosed
	default:
		return g.Conn.Write(p)
	}
}

func (g *gate) SetLinger(sec int) error { return g.Conn.(*net.TCPConn).SetLinger(sec) }

func (g *gate) Close() error {
	g.once.Do(func() { close(g.gone) })
	return g.Conn.Close()
}

// rig is a relay between a TLS connection over TCP and something that acts the kernel.
type rig struct {
	relay  *Relay
	kernel *net.UnixConn // as the driver: the only one that holds this end
	server net.Conn
	tls    *tls.Conn // server
	gate   *gate
}

// newRig makes one. The relay waits for wait.
func newRig(t testing.TB, early string, wait time.Duration) *rig {
	t.Helper()
	toServer, server := tlsPair(t)
	r := relayed(t, toServer, server, early, wait)
	r.tls, r.gate = server, toServer.NetConn().(*gate)
	return r
}

// relayed puts a relay on a connection to a server.
func relayed(t testing.TB, toServer, server net.Conn, early string, wait time.Duration) *rig {
	t.Helper()
	r, err := start(toServer, []byte(early), wait)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	c, err := net.FileConn(r.Kernel())
	if err != nil {
		t.Fatal(err)
	}
	r.Kernel().Close()
	kernel := c.(*net.UnixConn)
	t.Cleanup(func() { kernel.Close() })
	for _, c := range []net.Conn{kernel, server} {
		c.SetDeadline(time.Now().Add(forever))
	}
	return &rig{relay: r, kernel: kernel, server: server}
}

// tcpPair returns both ends of a TCP connection.
func tcpPair(t testing.TB) (client, server net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	s, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close(); c.Close() })
	return c, s
}

// tlsPair returns both ends of a TLS connection over TCP, after the handshake. Below the
// client's is a gate.
func tlsPair(t testing.TB) (client, server *tls.Conn) {
	t.Helper()
	sc, cc := serverTLS()
	c, s := tcpPair(t)
	client, server = tls.Client(newGate(c), cc), tls.Server(s, sc)
	failed := make(chan error, 1)
	go func() { failed <- server.Handshake() }()
	if err := errors.Join(client.Handshake(), <-failed); err != nil {
		t.Fatal(err)
	}
	return client, server
}

// ended waits for the end of the relay and wants it to be for the reason.
func (r *rig) ended(t testing.TB, want error) {
	t.Helper()
	select {
	case <-r.relay.Done():
	case <-time.After(forever):
		stacks := make([]byte, 1<<20)
		t.Fatalf("the relay does not end:\n%s", stacks[:runtime.Stack(stacks, true)])
	}
	if err := r.relay.Err(); !errors.Is(err, want) {
		t.Errorf("the relay ended with %v, want %v", err, want)
	}
}

// write writes all of p.
func write(t testing.TB, w io.Writer, p string) {
	t.Helper()
	if _, err := io.WriteString(w, p); err != nil {
		t.Fatalf("write: %v", err)
	}
}

// expect reads exactly want.
func expect(t testing.TB, r io.Reader, want string) {
	t.Helper()
	p := make([]byte, len(want))
	if n, err := io.ReadFull(r, p); err != nil || string(p) != want {
		t.Fatalf("read %q, %v; want %q", p[:n], err, want)
	}
}

// expectEnd wants the connection to have ended. A reset is no end.
func expectEnd(t testing.TB, r io.Reader) {
	t.Helper()
	if p, err := io.ReadAll(r); err != nil || len(p) > 0 {
		t.Errorf("read %d bytes and %v; want the end", len(p), err)
	}
}

// expectReset wants the connection to break, without an end in good order.
func expectReset(t testing.TB, r io.Reader) {
	t.Helper()
	_, err := io.Copy(io.Discard, r)
	if err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read: %v; want that the connection is broken", err)
	}
}

// TestBytes passes bytes in both directions at once, in pieces of all sizes.
func TestBytes(t *testing.T) {
	r := newRig(t, "early", forever)
	const size = 4 << 20
	data := [2][]byte{make([]byte, size), make([]byte, size)}
	rand.Read(data[0])
	rand.Read(data[1])
	var wg sync.WaitGroup
	send := func(w io.Writer, p []byte) {
		rest := p
		for len(rest) > 0 {
			n := min(1+mathrand.IntN(1<<mathrand.IntN(20)), len(rest))
			if _, err := w.Write(rest[:n]); err != nil {
				t.Errorf("write: %v", err)
				return
			}
			rest = rest[n:]
		}
	}
	receive := func(c io.Reader, want []byte) {
		got := make([]byte, len(want))
		if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, want) {
			t.Errorf("read: %v; or not what was sent", err)
		}
	}
	wg.Go(func() { send(r.kernel, data[0]) })
	wg.Go(func() { send(r.server, data[1]) })
	wg.Go(func() { receive(r.server, data[0]) })
	wg.Go(func() { receive(r.kernel, append([]byte("early"), data[1]...)) })
	wg.Wait()
	if err := r.relay.Err(); err != nil {
		t.Errorf("a relay that runs has the error %v", err)
	}
}

// TestDisc detaches as the driver does: NBD_CMD_DISC, then both halves are shut down. The
// server gets everything, and an end in good order.
func TestDisc(t *testing.T) {
	for _, polite := range []bool{true, false} {
		r := newRig(t, "", forever)
		write(t, r.kernel, "request"+string(disc))
		r.kernel.CloseRead()
		r.kernel.CloseWrite()
		r.kernel.Close()
		expect(t, r.server, "request"+string(disc))
		expectEnd(t, r.server)
		if polite {
			r.server.Close()
		} else {
			r.tls.NetConn().Close() // many servers do not say close_notify
		}
		r.ended(t, nil)
	}
}

// TestDiscAnswered has a server that closes as soon as it has read NBD_CMD_DISC, before
// the kernel has ended its half.
func TestDiscAnswered(t *testing.T) {
	r := newRig(t, "", forever)
	write(t, r.kernel, string(disc))
	expect(t, r.server, string(disc))
	r.server.Close()
	expectEnd(t, r.kernel)
	r.kernel.Close()
	r.ended(t, nil)
}

// TestDiscStuck has a server that does not close.
func TestDiscStuck(t *testing.T) {
	r := newRig(t, "", time.Millisecond)
	write(t, r.kernel, string(disc))
	r.kernel.Close()
	r.ended(t, ErrStuck)
}

// TestDropped has a kernel that gives up a connection. The server must see at once that it
// is broken.
func TestDropped(t *testing.T) {
	for name, drop := range map[string]func(c *net.UnixConn){
		"shut down": func(c *net.UnixConn) { c.CloseRead(); c.CloseWrite() },
		"closed":    func(c *net.UnixConn) { c.Close() },
	} {
		r := newRig(t, "", forever)
		write(t, r.kernel, "request")
		expect(t, r.server, "request")
		write(t, r.server, "an answer that nobody reads")
		drop(r.kernel)
		expectReset(t, r.server)
		r.ended(t, ErrDropped)
		if t.Failed() {
			t.Fatal(name)
		}
	}
}

// TestDroppedWhileSending has a server that does not read. What waits must not reach it
// once the kernel has given up.
func TestDroppedWhileSending(t *testing.T) {
	r := newRig(t, "", time.Millisecond)
	close(r.gate.shut)
	write(t, r.kernel, "old write")
	<-r.gate.waiting
	r.kernel.CloseRead()
	r.kernel.CloseWrite()
	r.ended(t, ErrDropped)
	got, _ := io.ReadAll(r.server)
	if len(got) > 0 {
		t.Errorf("the server got %q", got)
	}
}

// TestDrop has a server that does not read, and somebody who knows that the kernel gives the
// connection up: that cannot wait.
func TestDrop(t *testing.T) {
	r := newRig(t, "", forever)
	close(r.gate.shut)
	write(t, r.kernel, "old write")
	<-r.gate.waiting
	r.kernel.CloseRead()
	r.kernel.CloseWrite()
	r.relay.Drop()
	got, err := io.ReadAll(r.server)
	if len(got) > 0 || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the server got %q, %v", got, err)
	}
	r.ended(t, ErrDropped)
}

// TestServerCloses has a server that answers, and ends in good order.
func TestServerCloses(t *testing.T) {
	r := newRig(t, "early", forever)
	write(t, r.server, "answer")
	r.server.Close()
	expect(t, r.kernel, "earlyanswer")
	expectEnd(t, r.kernel)
	r.kernel.Close()
	r.ended(t, ErrServerClosed)
}

// TestServerClosesWhileSending has a server that ends while the kernel goes on sending
// and reads nothing. What the server said reaches the kernel all the same.
func TestServerClosesWhileSending(t *testing.T) {
	r := newRig(t, "", forever)
	write(t, r.server, "answer")
	r.server.Close()
	for {
		if _, err := r.kernel.Write(make([]byte, 4096)); err != nil {
			if !errors.Is(err, syscall.EPIPE) && !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("the kernel's write fails with %v", err)
			}
			break
		}
	}
	got, _ := io.ReadAll(r.kernel) // a reset, since not all was read that the kernel sent
	if string(got) != "answer" && len(got) != 0 {
		t.Errorf("the kernel got %q", got)
	}
	r.kernel.Close()
	select {
	case <-r.relay.Done():
	case <-time.After(forever):
		t.Fatal("the relay does not end")
	}
	if r.relay.Err() == nil {
		t.Error("the relay says that all was well")
	}
}

// TestHalfClose has a server that sends no more, and still reads.
func TestHalfClose(t *testing.T) {
	r := newRig(t, "", forever)
	if err := r.tls.CloseWrite(); err != nil {
		t.Fatal(err)
	}
	expectEnd(t, r.kernel)
	for range 3 {
		write(t, r.kernel, "more")
		expect(t, r.server, "more")
	}
	r.kernel.Close()
	expectReset(t, r.server)
	r.ended(t, ErrServerClosed)
}

// TestHalfCloseStuck has a kernel that does not end after the server did.
func TestHalfCloseStuck(t *testing.T) {
	r := newRig(t, "", time.Millisecond)
	r.tls.CloseWrite()
	expectEnd(t, r.kernel)
	r.ended(t, ErrServerClosed)
}

// TestServerBreaks has servers that end as no server should. The kernel sees the end.
func TestServerBreaks(t *testing.T) {
	for _, tt := range []struct {
		name  string
		crash func(c *tls.Conn)
		want  error
	}{
		{"reset", func(c *tls.Conn) { c.NetConn().(*net.TCPConn).SetLinger(0); c.NetConn().Close() }, syscall.ECONNRESET},
		{"cut off", func(c *tls.Conn) { c.NetConn().Close() }, ErrServerClosed},
		{"cut off in a record", func(c *tls.Conn) {
			c.NetConn().Write([]byte{23, 3, 3, 0, 99, 1, 2, 3})
			c.NetConn().Close()
		}, io.ErrUnexpectedEOF},
	} {
		r := newRig(t, "", forever)
		tt.crash(r.tls)
		expectEnd(t, r.kernel)
		r.kernel.Close()
		r.ended(t, tt.want)
		if t.Failed() {
			t.Fatal(tt.name)
		}
	}
	r := newRig(t, "", forever)
	if _, err := r.tls.NetConn().Write([]byte("this is no record of TLS, and can be none")); err != nil {
		t.Fatal(err)
	}
	expectEnd(t, r.kernel)
	var damaged tls.RecordHeaderError
	<-r.relay.Done()
	if err := r.relay.Err(); !errors.As(err, &damaged) {
		t.Errorf("a damaged record ends the relay with %v", err)
	}
}

// TestClose closes a relay that is in use, and one that has ended.
func TestClose(t *testing.T) {
	r := newRig(t, "", forever)
	close(r.gate.shut)
	write(t, r.kernel, "request")
	<-r.gate.waiting
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() { r.relay.Close() })
	}
	wg.Wait()
	expectEndOrReset(t, r.kernel)
	expectReset(t, r.server)
	r.ended(t, ErrClosed)

	r = newRig(t, "", forever)
	write(t, r.kernel, string(disc))
	r.kernel.Close()
	expect(t, r.server, string(disc))
	r.server.Close()
	r.ended(t, nil)
	r.relay.Close()
	r.ended(t, nil)
}

// expectEndOrReset wants the connection to have ended, in whatever way.
func expectEndOrReset(t testing.TB, r io.Reader) {
	t.Helper()
	if _, err := io.Copy(io.Discard, r); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("the connection has not ended")
	}
}

// TestNoHalves relays for a connection that has no halves, and is not TLS.
func TestNoHalves(t *testing.T) {
	toServer, server := net.Pipe()
	defer server.Close()
	r, err := New(toServer, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	go func() { r.Kernel().Write(disc); r.Kernel().Close() }()
	got, err := io.ReadAll(server)
	if err != nil || !bytes.Equal(got, disc) {
		t.Errorf("the server got %q, %v", got, err)
	}
	<-r.Done()
	if err := r.Err(); err != nil {
		t.Error(err)
	}
}

// faulty is a connection that breaks down when it is read.
type faulty struct{ net.Conn }

func (faulty) Read([]byte) (int, error) { panic("a fault") }

// TestPanic has a relay break down, which ends, and nothing else.
func TestPanic(t *testing.T) {
	near, far := tcpPair(t)
	r := relayed(t, faulty{near}, far, "", forever)
	expectEndOrReset(t, r.kernel)
	<-r.relay.Done()
	if err := r.relay.Err(); err == nil || !strings.Contains(err.Error(), "panic: a fault") {
		t.Errorf("it ended with %v", err)
	}
}

// TestLeaks wants nothing to be left of relays, however they end.
func TestLeaks(t *testing.T) {
	ends := map[string]func(r *rig){
		"close":      func(r *rig) { r.relay.Close() },
		"disc":       func(r *rig) { r.kernel.Write(disc); r.kernel.Close(); io.ReadAll(r.server); r.server.Close() },
		"dropped":    func(r *rig) { r.kernel.Close() },
		"server":     func(r *rig) { r.server.Close(); io.ReadAll(r.kernel); r.kernel.Close() },
		"cut":        func(r *rig) { r.tls.NetConn().Close() },
		"one of two": func(r *rig) { r.tls.CloseWrite() },
	}
	round := func() {
		for _, end := range ends {
			r := newRig(t, "early", time.Millisecond)
			end(r)
			<-r.relay.Done()
			r.kernel.Close()
			r.tls.NetConn().Close()
		}
	}
	round()
	files, before := openFiles(t), runtime.NumGoroutine()
	for range 5 {
		round()
	}
	if now := openFiles(t); now > files {
		t.Errorf("%d open files before, %d after", files, now)
	}
	for limit := time.Now().Add(forever); runtime.NumGoroutine() > before; runtime.Gosched() {
		if time.Now().After(limit) {
			t.Fatalf("%d goroutines before, %d after", before, runtime.NumGoroutine())
		}
	}
}

// openFiles counts the open files of this process.
func openFiles(t *testing.T) int {
	t.Helper()
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(list)
}

// exchange sends a request for size bytes and reads the answer, n times.
func (r *rig) exchange(b testing.TB, n, size int) {
	request := make([]byte, proto.RequestSize)
	answer := make([]byte, 16+size)
	for range n {
		if _, err := r.kernel.Write(request); err != nil {
			b.Fatal(err)
		}
		if _, err := io.ReadFull(r.kernel, answer); err != nil {
			b.Fatal(err)
		}
	}
}

// answer answers each request with size bytes, until the connection ends.
func (r *rig) answer(size int) {
	request := make([]byte, proto.RequestSize)
	answer := make([]byte, 16+size)
	for {
		if _, err := io.ReadFull(r.server, request); err != nil {
			return
		}
		if _, err := r.server.Write(answer); err != nil {
			return
		}
	}
}

// TestNoAllocations wants requests to pass without taking memory. Over TLS each of its
// ends takes 24 bytes when it receives (its atLeastReader), and nothing else.
func TestNoAllocations(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector empties pools at random")
	}
	plain := func() *rig {
		near, far := tcpPair(t)
		return relayed(t, near, far, "", forever)
	}
	for _, tt := range []struct {
		name string
		rig  *rig
		most float64
	}{{"TCP", plain(), 0}, {"TLS", newRig(t, "", forever), 2}} {
		r := tt.rig
		done := make(chan struct{})
		go func() { defer close(done); r.answer(4096) }()
		r.exchange(t, 1, 4096)
		if n := testing.AllocsPerRun(2000, func() { r.exchange1(t) }); n > tt.most {
			t.Errorf("%s: %v allocations for each request, want at most %v", tt.name, n, tt.most)
		}
		r.relay.Close()
		<-done
	}
}

var (
	testRequest = make([]byte, proto.RequestSize)
	testAnswer  = make([]byte, 16+4096)
)

// exchange1 is exchange for one request, with buffers that are there already.
func (r *rig) exchange1(t testing.TB) {
	if _, err := r.kernel.Write(testRequest); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(r.kernel, testAnswer); err != nil {
		t.Fatal(err)
	}
}

func BenchmarkRead(b *testing.B) {
	for _, size := range []int{4096, 256 << 10} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			r := newRig(b, "", forever)
			go r.answer(size)
			r.exchange(b, 1, size)
			b.SetBytes(int64(size))
			b.ReportAllocs()
			b.ResetTimer()
			r.exchange(b, b.N, size)
		})
	}
}
