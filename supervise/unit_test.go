package supervise

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"nbd.example/nbd/internal/testgate"
	"nbd.example/nbd/kernel"
	"nbd.example/nbd/kernel/kerneltest"
	"nbd.example/nbd/proto"
	"nbd.example/nbd/supervise/pass"
	"nbd.example/nbd/supervise/sock"
	"nbd.example/nbd/uri"
)

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
	n, files, err := pass.Receive(l, buffer)
	if err != nil || string(buffer[:n]) != "FDSTORE=1\nFDNAME=nbd0-1" || len(files) != 1 || sock.Inode(files[0]) != sock.Inode(a) {
		t.Errorf("%q, %v, %v", buffer[:n], files, err)
	}
	for _, f := range files {
		f.Close()
	}
	n, files, err = pass.Receive(l, buffer)
	if err != nil || string(buffer[:n]) != "FDSTOREREMOVE=1\nFDNAME=nbd0-1" || len(files) != 0 {
		t.Errorf("%q, %v, %v", buffer[:n], files, err)
	}
}

// More sockets than one message can carry.
func TestReceiveMany(t *testing.T) {
	testgate.Requires(t, testgate.Linux())
	a, b := socketPair(t)
	from, to := unixConn(t, a), unixConn(t, b)
	const n = pass.MaxRights + 5
	var names []string
	go func() {
		for at := 0; at < n; at += pass.MaxRights {
			r := &reply{More: true}
			var list []Socket
			for i := at; i < min(at+pass.MaxRights, n); i++ {
				name := fmt.Sprintf("nbd%d-1", i)
				r.Names, list = append(r.Names, name), append(list, Socket{Name: name, File: os.Stderr})
			}
			line, _ := encode(r)
			pass.Send(from, line, list)
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

// A server that takes less at a time than the kernel asks for is not what was attached.
func TestCompareMaxPayload(t *testing.T) {
	p := &peer{from: &target{name: "nbd://h/"}}
	p.export.Size, p.export.Flags = diskSize, proto.FlagHasFlags
	p.export.BlockSizeTold, p.export.BlockSize = true, proto.BlockSize{Minimum: 1, Preferred: 4096, MaxPayload: 1 << 16}
	st := &State{Size: diskSize, BlockSize: 512, Flags: proto.FlagHasFlags}
	for most, fine := range map[int64]bool{0: true, 1 << 16: true, 1<<16 + 1024: false, 1280 << 10: false} {
		st.MaxRequest = most
		if err := st.compare(p); (err == nil) != fine || err != nil && !strings.Contains(err.Error(), "requests of at most 65536 bytes now") {
			t.Errorf("requests of %d bytes: %v", most, err)
		}
	}
	st.MaxRequest, p.export.BlockSizeTold = 1<<20, false
	if err := st.compare(p); err != nil {
		t.Error(err)
	}
}

// The request timeout is what the kernel is told, and told again with each connection.
func TestTimeouts(t *testing.T) {
	r, h, x := newRig(t), newHost(t, "unix"), newDisk("one")
	h.serve(x)
	s := r.supervisor()
	for i, c := range []struct{ spec, want time.Duration }{
		{0, DefaultTimeout}, {3 * time.Second, 3 * time.Second}, {-1, 0},
	} {
		d, err := s.Attach(r.ctx(), &Spec{URIs: []string{h.uri()}, Timeout: c.spec, Identifier: fmt.Sprint(i)})
		if err != nil {
			t.Fatal(err)
		}
		dev := r.k.Device(d.Index())
		for range 2 {
			if st := d.Status(); st.Timeout != c.want || dev.Attached().Timeout != c.want {
				t.Errorf("%v: timeout %v; the kernel has %v", c.spec, st.Timeout, dev.Attached().Timeout)
			}
			h.kill()
			r.awaitPhase(d, Reconnecting)
			h.serve(x)
			r.awaitPhase(d, Attached)
		}
	}
}

// A process that is killed right after the kernel has attached a device leaves a file that
// says so: whatever else is to be found out and set comes later.
func TestRecordedAtOnce(t *testing.T) {
	r, h := newRig(t), newHost(t, "unix")
	h.serve(newDisk("one"))
	driver := r.cfg.Kernel
	r.cfg.Kernel = &looking{driver, func(i kernel.Index) (*kernel.Info, error) {
		info, err := driver.Info(i)
		if err == nil {
			info.MaxRequest = 1 << 30 // more than the server takes
		}
		return info, err
	}}
	s := r.supervisor()
	var found error = errors.New("nothing was limited")
	r.k.Intercept(func(_ context.Context, op kerneltest.Op, i kernel.Index) error {
		if op == kerneltest.OpLimitRequests {
			_, found = readState(statePath(r.dir, i))
		}
		return nil
	})
	if _, err := s.Attach(r.ctx(), &Spec{URIs: []string{h.uri()}}); err != nil {
		t.Fatal(err)
	}
	if found != nil {
		t.Error(found)
	}
}

// What a server says of its export is settled, or refused, before the kernel hears of it.
func TestGeometry(t *testing.T) {
	for _, c := range []struct {
		size    uint64
		minimum uint32 // 0 if it is not told
		flags   proto.TransmissionFlags
		spec    Spec
		want    string // the error
		bytes   int64
		told    proto.TransmissionFlags
	}{
		{size: 0, want: "fewer than one block of 512"},
		{size: 511, want: "fewer than one block of 512"},
		{size: 4095, spec: Spec{BlockSize: 4096}, want: "fewer than one block of 4096"},
		{size: 1 << 63, want: "over the limit"},
		{size: 1<<64 - 1, want: "over the limit"},
		{size: 1<<63 - 1, bytes: 1<<63 - 512, told: proto.FlagHasFlags},
		{size: 1 << 20, minimum: 128 << 10, want: "more than the kernel takes"},
		{size: 1 << 20, minimum: 1, bytes: 1 << 20, told: proto.FlagHasFlags},
		{size: 1 << 20, spec: Spec{ReadOnly: true}, bytes: 1 << 20, told: proto.FlagHasFlags | proto.FlagReadOnly},
		{size: 1 << 20, flags: proto.FlagSendFlush, bytes: 1 << 20, told: proto.FlagHasFlags}, // no flags at all
	} {
		p := &peer{from: &target{name: "nbd://h/"}}
		p.export.Size, p.export.Flags = c.size, c.flags
		if c.minimum != 0 {
			p.export.BlockSizeTold, p.export.BlockSize.Minimum = true, c.minimum
		}
		st := &State{Spec: c.spec}
		if err := st.compare(p); c.size>>63 != 0 && (err == nil || !strings.Contains(err.Error(), "over the limit")) {
			t.Errorf("%d bytes, later: %v", c.size, err)
		}
		err := st.geometry(p)
		switch {
		case c.want != "":
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%d bytes, blocks of %d: %v, want %q", c.size, c.minimum, err, c.want)
			}
		case err != nil || st.Size != c.bytes || st.Flags != c.told:
			t.Errorf("%d bytes, blocks of %d: %v; %d bytes and %v, want %d and %v", c.size, c.minimum, err, st.Size, st.Flags, c.bytes, c.told)
		}
	}
}
