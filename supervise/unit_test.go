package supervise

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"nbd.example/nbd/internal/testgate"
	"nbd.example/nbd/uri"
)

func TestBackoff(t *testing.T) {
	b := newBackoff(Backoff{First: 100 * time.Millisecond, Most: time.Second})
	for _, random := range []float64{0, 0.999999} {
		b.reset()
		b.random = func() float64 { return random }
		for i, longest := range []int{100, 200, 400, 800, 1000, 1000} {
			got, most := b.next(), time.Duration(longest)*time.Millisecond
			if random == 0 && got != most/2 || random > 0 && (got > most || got < most*99/100) {
				t.Errorf("wait %d is %v of at most %v with %v", i, got, most, random)
			}
		}
	}
	if b := newBackoff(Backoff{}); b.first != defaultFirst || b.most != defaultMost {
		t.Errorf("%+v", b)
	}
	if b := newBackoff(Backoff{First: time.Hour, Most: time.Second}); b.next() > time.Second {
		t.Errorf("%+v", b)
	}
}

func TestDeadTimeout(t *testing.T) {
	for _, c := range []struct {
		policy Policy
		want   time.Duration
	}{
		{Policy{}, forEver()},
		{Policy{Fail: true, Limit: time.Second}, 0},
		{Policy{Limit: time.Millisecond}, time.Second},
		{Policy{Limit: 1 << 62}, forEver()},
	} {
		if got := c.policy.deadTimeout(); got != c.want {
			t.Errorf("%+v: %v, want %v", c.policy, got, c.want)
		}
	}
	// The kernel multiplies the seconds by its ticks, in a long.
	if s := forEver() / time.Second; int64(s) > 1<<62/1000 {
		t.Errorf("%d s", s)
	}
}

func TestIdentifier(t *testing.T) {
	for text, want := range map[string]string{
		"nbd://me@host:10809/x":                                   "nbd://host/x",
		"nbds://h/x?tls-certificates=/etc/pki&tls-hostname=other": "nbds://h/x",
		"nbd+unix:///?socket=/s":                                  "nbd+unix:///?socket=/s",
	} {
		s, err := (&Spec{URIs: []string{text, "nbd://other/x"}}).complete()
		if err != nil || s.Identifier != want {
			t.Errorf("%s: %q, %v; want %q", text, s.Identifier, err, want)
		}
	}
}

// What a name stood for is used while nobody can be asked.
func TestResolver(t *testing.T) {
	answers := make(chan []netip.Addr, 1)
	var dialed []string
	r := &resolver{
		host: "server.example", port: 10809,
		lookup: func(ctx context.Context, host string) ([]netip.Addr, error) {
			select {
			case a := <-answers:
				return a, nil
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		},
		dial: func(_ context.Context, network, address string) (net.Conn, error) {
			dialed = append(dialed, address)
			return nil, errors.New("refused")
		},
	}
	answers <- []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("::ffff:192.0.2.2")}
	connect := func(want ...string) bool {
		dialed = nil
		ctx, cancel := context.WithTimeout(context.Background(), hang)
		defer cancel()
		if _, err := r.connect(ctx); err == nil || !strings.Contains(err.Error(), "refused") {
			t.Fatal(err)
		}
		return slices.Equal(dialed, want)
	}
	old := []string{"192.0.2.1:10809", "192.0.2.2:10809"}
	if !connect(old...) {
		t.Errorf("dialed %v", dialed)
	}
	r.refresh()
	r.refresh() // one at a time
	if !connect(old...) {
		t.Errorf("dialed %v while the name is looked up", dialed)
	}
	answers <- []netip.Addr{netip.MustParseAddr("2001:db8::1")}
	eventually(t, "the new address", func() bool { return connect("[2001:db8::1]:10809") })
}

// A log that is not taken delays nobody.
func TestAsyncLog(t *testing.T) {
	gate := make(chan struct{})
	var out bytes.Buffer
	h := newAsyncHandler(slog.NewTextHandler(writer(func(b []byte) (int, error) {
		<-gate
		return out.Write(b)
	}), nil))
	log := slog.New(h).With("a", 1).WithGroup("g")
	for i := range 3 * logQueue {
		log.Info("line", "i", i)
	}
	close(gate)
	h.close(context.Background())
	log.Info("too late")
	if got := out.String(); strings.Count(got, "msg=line a=1 g.i=") < logQueue || !strings.Contains(got, "were dropped") || strings.Contains(got, "too late") {
		t.Error(got)
	}
}

func TestWorker(t *testing.T) {
	w := newWorker()
	gate, begun := make(chan struct{}), make(chan struct{})
	var done []string
	add := func(s string) func() { return func() { done = append(done, s) } }
	w.do(nil, func() { close(begun); <-gate })
	<-begun
	w.do("a", add("old"))
	w.do("b", add("b"))
	w.do("a", add("new"))
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := w.flush(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("a flush of what does not end: %v", err)
	}
	close(gate)
	if err := w.flush(context.Background()); err != nil {
		t.Error(err)
	}
	if err := w.close(context.Background()); err != nil || !slices.Equal(done, []string{"new", "b"}) {
		t.Errorf("%v, %v", done, err)
	}
	w.do(nil, add("late"))
	if err := w.flush(context.Background()); err != nil || len(done) != 2 {
		t.Errorf("%v, %v", done, err)
	}
}

// The store of systemd gets descriptors with their names.
func TestSystemdStore(t *testing.T) {
	testgate.Requires(t, testgate.Linux())
	path := filepath.Join(tempDir(t), "notify")
	t.Setenv("NOTIFY_SOCKET", "")
	if s := SystemdStore(); s != nil {
		t.Error("a store without a manager")
	}
	t.Setenv("NOTIFY_SOCKET", path)
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a, b := socketPair(t)
	defer a.Close()
	defer b.Close()
	s := SystemdStore()
	if err := errors.Join(s.Keep("nbd0-1", a), s.Drop("nbd0-1")); err != nil {
		t.Fatal(err)
	}
	buffer := make([]byte, 1000)
	n, files, err := receiveSockets(l, buffer)
	if err != nil || string(buffer[:n]) != "FDSTORE=1\nFDNAME=nbd0-1" || len(files) != 1 || inode(files[0]) != inode(a) {
		t.Errorf("%q, %v, %v", buffer[:n], files, err)
	}
	for _, f := range files {
		f.Close()
	}
	n, files, err = receiveSockets(l, buffer)
	if err != nil || string(buffer[:n]) != "FDSTOREREMOVE=1\nFDNAME=nbd0-1" || len(files) != 0 {
		t.Errorf("%q, %v, %v", buffer[:n], files, err)
	}
}

// More sockets than one message can carry.
func TestReceiveMany(t *testing.T) {
	testgate.Requires(t, testgate.Linux())
	a, b := socketPair(t)
	from, to := unixConn(t, a), unixConn(t, b)
	const n = maxRights + 5
	var names []string
	go func() {
		for at := 0; at < n; at += maxRights {
			r := &reply{More: true}
			var list []Socket
			for i := at; i < min(at+maxRights, n); i++ {
				name := fmt.Sprintf("nbd%d-1", i)
				r.Names, list = append(r.Names, name), append(list, Socket{name, os.Stderr})
			}
			line, _ := encode(r)
			sendSockets(from, line, list)
		}
		line, _ := encode(&reply{})
		from.Write(line)
	}()
	got, err := receiveAll(to)
	if err != nil || len(got) != n {
		t.Fatalf("%d sockets, %v", len(got), err)
	}
	for _, s := range got {
		names = append(names, s.Name)
		s.File.Close()
	}
	if names[0] != "nbd0-1" || names[n-1] != fmt.Sprintf("nbd%d-1", n-1) {
		t.Errorf("%v", names)
	}
}

func unixConn(t *testing.T, f *os.File) *net.UnixConn {
	defer f.Close()
	c, err := net.FileConn(f)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c.(*net.UnixConn)
}

// Names without sockets are a fault of the peer.
func TestReceiveTooFew(t *testing.T) {
	testgate.Requires(t, testgate.Linux())
	for _, text := range []string{`{"names":["nbd0-1"]}` + "\n", "x\n", `{"error":"no"}` + "\n", "{"} {
		a, b := socketPair(t)
		from, to := unixConn(t, a), unixConn(t, b)
		from.Write([]byte(text))
		from.Close()
		if got, err := receiveAll(to); err == nil || len(got) != 0 {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
}

func TestPlainURI(t *testing.T) {
	u, err := uri.Parse("nbds+unix://user@/x?socket=/s&tls-psk-file=/secret")
	if err != nil {
		t.Fatal(err)
	}
	if got := plainURI(u); got != "nbds+unix:///x?socket=/s" {
		t.Error(got)
	}
}
