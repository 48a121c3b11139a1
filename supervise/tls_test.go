package supervise

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"nbd.example/nbd/block"
	"nbd.example/nbd/kernel"
	"nbd.example/nbd/kernel/kerneltest"
	"nbd.example/nbd/server"
	"nbd.example/nbd/supervise/sock"
	"nbd.example/nbd/transmission"
)

// authority issues certificates.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

func newAuthority(t *testing.T, name string) *authority {
	a := &authority{t: t}
	var der []byte
	der, a.key = a.issue(&x509.Certificate{
		Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	})
	var err error
	if a.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	a.pem = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	return a
}

func (a *authority) issue(c *x509.Certificate) ([]byte, *ecdsa.PrivateKey) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	c.SerialNumber, err = rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		a.t.Fatal(err)
	}
	c.NotBefore, c.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, signer)
	if err != nil {
		a.t.Fatal(err)
	}
	return der, key
}

// server returns a configuration with a new certificate for these names.
func (a *authority) server(names ...string) *tls.Config {
	der, key := a.issue(&x509.Certificate{Subject: pkix.Name{CommonName: names[0]}, DNSNames: names})
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}
}

func (a *authority) file() string {
	path := filepath.Join(tempDir(a.t), "ca-cert.pem")
	if err := os.WriteFile(path, a.pem, 0o600); err != nil {
		a.t.Fatal(err)
	}
	return path
}

func (h *host) serveTLS(x *disk, c *tls.Config) {
	h.start(server.Config{Exports: []*server.Export{x.export()}, TLSMode: server.Forced, TLS: c})
}

func (h *host) tlsURI(more string) string {
	return strings.Replace(h.uri(), "nbd+unix", "nbds+unix", 1) + more
}

// A TLS connection reaches the kernel through a relay, and is replaced when it dies. A
// renewed certificate is welcome, that of another server is not.
func TestTLS(t *testing.T) {
	ca, other := newAuthority(t, "the authority"), newAuthority(t, "the authority")
	r, h, x := newRig(t), newHost(t, "unix"), newDisk("one")
	h.serveTLS(x, ca.server("disks.example"))
	d, dev := r.attach(&Spec{
		URIs: []string{h.tlsURI("")}, Connections: 2, Timeout: brisk, TLS: &TLSFiles{CA: ca.file(), Name: "disks.example"},
	})
	st := d.Status()
	if !st.Connections[0].Relay || len(st.Seen.Peers) != 1 || !strings.Contains(st.Seen.Peers[h.tlsURI("")], "disks.example") {
		t.Errorf("%+v", st)
	}
	l := startLoad(dev, 2)
	for i, config := range []*tls.Config{ca.server("disks.example"), ca.server("tapes.example", "disks.example")} {
		l.progress(t, 10)
		h.kill()
		h.serveTLS(x, config)
		r.await(d, "a reconnect", func(st State) bool { return st.Phase == Attached && st.Reconnects >= 2*(i+1) })
	}
	for _, c := range []struct {
		config *tls.Config
		phase  Phase
		want   string
	}{
		{ca.server("tapes.example"), Reconnecting, "not disks.example"},
		{other.server("disks.example"), Reconnecting, "unknown authority"},
	} {
		h.kill()
		h.serveTLS(x, c.config)
		r.await(d, c.want, func(st State) bool { return st.Phase == c.phase && strings.Contains(st.Reason, c.want) })
		eventually(t, "the kernel to have no connection to the wrong server", func() bool { return alive(dev) == 0 })
	}
	h.kill()
	h.serveTLS(x, ca.server("disks.example"))
	r.awaitPhase(d, Attached)
	l.progress(t, 10)
	if err := l.end(); err != nil {
		t.Error(err)
	}
}

// Where nothing is verified the key must stay.
func TestTLSInsecure(t *testing.T) {
	ca := newAuthority(t, "the authority")
	r, h, x := newRig(t), newHost(t, "unix"), newDisk("one")
	first := ca.server("disks.example")
	h.serveTLS(x, first)
	d, _ := r.attach(&Spec{URIs: []string{h.tlsURI("&tls-verify-peer=0")}})
	h.kill()
	h.serveTLS(x, ca.server("disks.example"))
	if st := r.awaitPhase(d, Refused); !strings.Contains(st.Reason, "proves by TLS to be \"key ") {
		t.Errorf("%+v", st)
	}
	h.kill()
	h.serveTLS(x, first)
	r.awaitPhase(d, Attached)
}

// Certificates that were renewed while the device was attached are read when the old
// ones fail.
func TestTLSRefresh(t *testing.T) {
	ca, next := newAuthority(t, "old"), newAuthority(t, "new")
	r, h, x := newRig(t), newHost(t, "unix"), newDisk("one")
	h.serveTLS(x, ca.server("disks.example"))
	dir := filepath.Dir(ca.file())
	d, _ := r.attach(&Spec{URIs: []string{h.tlsURI("&tls-hostname=disks.example&tls-certificates=" + dir)}})
	if err := os.WriteFile(filepath.Join(dir, "ca-cert.pem"), next.pem, 0o600); err != nil {
		t.Fatal(err)
	}
	h.kill()
	h.serveTLS(x, next.server("disks.example"))
	r.await(d, "a reconnect", func(st State) bool { return st.Phase == Attached && st.Reconnects >= 1 })
}

// A relay dies with its process; the next one reconnects.
func TestTLSAdopt(t *testing.T) {
	ca := newAuthority(t, "the authority")
	r, h, x := newRig(t), newHost(t, "unix"), newDisk("one")
	h.serveTLS(x, ca.server("disks.example"))
	d, dev := r.attach(&Spec{URIs: []string{h.tlsURI("")}, Timeout: brisk, TLS: &TLSFiles{CA: ca.file(), Name: "disks.example"}})
	l := startLoad(dev, 2)
	l.progress(t, 10)
	r.s.crash()
	d = r.adoptOne(d.Index())
	r.await(d, "a reconnect", func(st State) bool { return st.Phase == Attached && st.Reconnects >= 1 })
	l.progress(t, 10)
	if err := l.end(); err != nil {
		t.Error(err)
	}
}

// What a relay holds when the kernel gives its connection up, because the server does not
// read, is dropped before the kernel sends it on another one.
func TestTLSDropped(t *testing.T) {
	ca := newAuthority(t, "the authority")
	r, h, x := newRig(t), newHost(t, "tcp"), newDisk("one")
	var gate sync.RWMutex
	e := x.export()
	e.Open = func(context.Context, server.Client) (*block.Device, error) {
		return block.New(&stuck{opened{x, diskSize}, &gate})
	}
	h.start(server.Config{
		Exports: []*server.Export{e}, TLSMode: server.Forced, TLS: ca.server("disks.example"),
		Transmission: transmission.Config{MaxBuffered: 1 << 20},
	})
	d, dev := r.attach(&Spec{
		URIs: []string{strings.Replace(h.uri(), "nbd", "nbds", 1)}, Timeout: calm, TLS: &TLSFiles{CA: ca.file(), Name: "disks.example"},
	})
	gate.Lock()
	const writes = 32 // more than all buffers on the way can hold
	written := make(chan error, writes)
	for range writes {
		go func() {
			_, err := dev.WriteAt(make([]byte, diskSize), 0)
			written <- err
		}()
	}
	old := d.slots[0]
	rest := 0
	eventually(t, "a relay that cannot send", func() bool {
		if rest++; writable(old.file) {
			rest = 0
		}
		return rest == 50
	})
	through := old.relay
	var late atomic.Bool
	r.k.Intercept(func(_ context.Context, op kerneltest.Op, _ kernel.Index) error {
		if op == kerneltest.OpReconfigure && through.Err() == nil {
			late.Store(true)
		}
		return nil
	})
	sock.End([]*os.File{old.file}, 0) // as the driver does
	r.await(d, "a reconnect", func(st State) bool { return st.Reconnects >= 1 })
	if late.Load() {
		t.Error("the kernel got a new connection while the old one's relay was still sending")
	}
	gate.Unlock()
	if err := d.Detach(r.ctx(), true); err != nil { // what was sent would be sent again only after the timeout
		t.Error(err)
	}
	for range writes {
		<-written
	}
}

// What went through the process that crashed, or was served by it, is dead for the next one,
// and for whoever looks meanwhile, though the kernel says nothing.
func TestAdoptTied(t *testing.T) {
	for _, how := range []string{"tls", "local"} {
		t.Run(how, func(t *testing.T) {
			ca := newAuthority(t, "the authority")
			r, h, x := newRig(t), newHost(t, "unix"), newDisk("one")
			spec := &Spec{Serve: "file:/disk", Connections: 2, Timeout: brisk}
			if how == "tls" {
				h.serveTLS(x, ca.server("disks.example"))
				spec = &Spec{URIs: []string{h.tlsURI("")}, Connections: 2, Timeout: brisk, TLS: &TLSFiles{CA: ca.file(), Name: "disks.example"}}
			}
			r.cfg.Local = func(_ context.Context, _ string, readOnly bool) (Local, error) { return newLocal(t, x, readOnly) }
			d, _ := r.attach(spec)
			r.s.crash()
			list, err := States(r.dir)
			if err != nil || len(list) != 1 || !list[0].Tied() || !list[0].Waits(false) || list[0].Waits(true) {
				t.Fatalf("%+v, %v", list, err)
			}
			if how == "tls" {
				h.kill()
			} else {
				x.mu.Lock()
				x.instance = "two"
				x.mu.Unlock()
			}
			d = r.adoptOne(d.Index())
			if st := d.Status(); !st.Waits(true) || st.Connections[0].Alive || st.Connections[1].Alive {
				t.Errorf("adopted: %+v", st)
			}
			if how == "local" {
				r.await(d, "a refusal", func(st State) bool {
					return st.Phase == Refused && strings.Contains(st.Reason, "another instance")
				})
				return
			}
			r.await(d, "a failure", func(st State) bool { return st.Phase == Reconnecting && st.Reason != "" })
			h.serveTLS(x, ca.server("disks.example"))
			r.await(d, "all connections", func(st State) bool { return st.Phase == Attached && st.Reconnects == 2 })
		})
	}
}
