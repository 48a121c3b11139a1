package server

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"strings"
	"testing"
	"time"

	"nbd.example/nbd/block"
	"nbd.example/nbd/handshake"
	"nbd.example/nbd/transmission"
)

// certificate makes a certificate that signs itself, for a server called
// "server" or a client of that name.
func certificate(t testing.TB, name string) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), BasicConstraintsValid: true, IsCA: true,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(leaf)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}, pool
}

func TestTLSOfOneExport(t *testing.T) {
	own, roots := certificate(t, "server")
	mine, clients := certificate(t, "client-7")
	d := newDisk()
	var log logBuffer
	var seen []string
	secret := &Export{Name: "secret", RequireTLS: true, Private: true, Open: func(ctx context.Context, c Client) (*block.Device, error) {
		seen = append(seen, c.TLS.PeerCertificates[0].Subject.CommonName)
		return d.open(ctx, c)
	}}
	s := newServer(t, Config{
		Exports: []*Export{row("open", d, ""), secret}, AllowList: true, Logger: log.logger(), TLSMode: Selective,
		TLS: &tls.Config{Certificates: []tls.Certificate{own}, ClientCAs: clients, ClientAuth: tls.RequireAndVerifyClientCert},
	}, d)

	p := connectTCP(t, s)
	p.refused("secret", handshake.ErrTLSRequired)
	if all, err := p.c.List(testContext(t)); err != nil || len(all) != 1 {
		t.Errorf("LIST in clear: %v, %v", all, err)
	}
	if len(seen) > 0 {
		t.Error("opened before TLS")
	}
	if err := p.c.StartTLS(testContext(t), &tls.Config{ServerName: "server", RootCAs: roots, Certificates: []tls.Certificate{mine}}); err != nil {
		t.Fatal(err)
	}
	if all, err := p.c.List(testContext(t)); err != nil || len(all) != 2 {
		t.Errorf("LIST under TLS: %v, %v", all, err)
	}
	u := p.use("secret")
	u.works()
	u.leave()
	if len(seen) != 1 || seen[0] != "client-7" {
		t.Errorf("opened for %q", seen)
	}
	if l := log.lines("client connected"); len(l) != 1 || !strings.Contains(l[0], `tls="TLS 1.3"`) || !strings.Contains(l[0], "tlspeer=client-7") {
		t.Errorf("log: %q", l)
	}
	connectTCP(t, s).use("open").leave()
}

// A client without a certificate does not get as far as an option, and the log
// says what is wrong.
func TestTLSWithoutClientCertificate(t *testing.T) {
	own, roots := certificate(t, "server")
	_, clients := certificate(t, "client")
	var log logBuffer
	s := newServer(t, Config{TLSMode: Forced, Logger: log.logger(),
		TLS: &tls.Config{Certificates: []tls.Certificate{own}, ClientCAs: clients, ClientAuth: tls.RequireAndVerifyClientCert}})
	p := connectTCP(t, s)
	p.refused("a", handshake.ErrTLSRequired)
	// With TLS 1.3 the client may learn of it only later.
	if err := p.c.StartTLS(testContext(t), &tls.Config{ServerName: "server", RootCAs: roots}); err == nil {
		if _, err := p.c.Go(testContext(t), "a"); err == nil {
			t.Error("a client without a certificate was let in")
		}
	}
	p.nc.Close()
	if err := wait(t, "end", p.end); err == nil {
		t.Error("ServeConn: no error")
	}
	if l := log.lines("no export chosen"); len(l) != 1 || !strings.Contains(l[0], "level=INFO") || !strings.Contains(l[0], "certificate") {
		t.Errorf("log: %q", l)
	}
}

// New connections see new certificates; old connections go on.
func TestReloadTLS(t *testing.T) {
	first, firstRoots := certificate(t, "server")
	second, secondRoots := certificate(t, "server")
	d := newDisk()
	cfg := func(c tls.Certificate) Config {
		return Config{Exports: []*Export{row("a", d, "")}, TLSMode: Forced, TLS: &tls.Config{Certificates: []tls.Certificate{c}}}
	}
	s := newServer(t, cfg(first), d)
	begin := func(roots *x509.CertPool) *user {
		p := connectTCP(t, s)
		if err := p.c.StartTLS(testContext(t), &tls.Config{ServerName: "server", RootCAs: roots}); err != nil {
			t.Fatal(err)
		}
		return p.use("a")
	}
	u := begin(firstRoots)
	if _, err := s.Reload(cfg(second)); err != nil {
		t.Fatal(err)
	}
	v := begin(secondRoots)
	u.works()
	v.works()
	v.leave()

	// TLS ends with an alert when the server shuts down, not with a cut.
	down := make(chan error, 1)
	go func() { down <- s.Shutdown(testContext(t)) }()
	<-u.d.Done()
	if err := u.d.Err(); errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	u.nc.Close()
	if err := wait(t, "end", u.end); !errors.Is(err, transmission.ErrDraining) {
		t.Errorf("ServeConn: %v", err)
	}
	if err := wait(t, "Shutdown", down); err != nil {
		t.Error(err)
	}
}
