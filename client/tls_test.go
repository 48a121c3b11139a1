package client_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"nbd.example/nbd/client"
	"nbd.example/nbd/handshake"
)

// certificate makes a certificate that is its own authority.
func certificate(t testing.TB, name string) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	c := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(parsed)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, pool
}

// listenTLS serves one connection: the handshake by s, then nothing but success.
func listenTLS(t testing.TB, s *handshake.Server) (uri string) {
	t.Helper()
	socket := filepath.Join(tempDir(t), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	t.Cleanup(func() { l.Close(); <-done })
	go func() {
		defer close(done)
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		r, err := s.Negotiate(t.Context(), c)
		if err != nil {
			return
		}
		serveDisk(nil)(&fake{structured: r.Structured, extended: r.Extended}, r.Conn)
		r.Conn.Close()
	}()
	return "nbd+unix:///export?socket=" + socket
}

// TestCertificateDirectory has a directory as libnbd and QEMU use it.
func TestCertificateDirectory(t *testing.T) {
	cert, pool := certificate(t, "good.example")
	dir := tempDir(t)
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{
		"ca-cert.pem":     {Type: "CERTIFICATE", Bytes: cert.Certificate[0]},
		"client-cert.pem": {Type: "CERTIFICATE", Bytes: cert.Certificate[0]},
		"client-key.pem":  {Type: "PRIVATE KEY", Bytes: key},
	} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s := &handshake.Server{Mode: handshake.Forced, Open: anyExport,
		TLS: &tls.Config{Certificates: []tls.Certificate{cert}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert}}
	c := dial(t, tlsURI(listenTLS(t, s), "&tls-hostname=good.example&tls-certificates="+dir), nil)
	if err := c.Flush(t.Context()); err != nil {
		t.Error(err)
	}
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	if _, err := client.Dial(t.Context(), "nbds://localhost:1/?tls-certificates="+dir+"/none", nil); err == nil {
		t.Error("a missing directory was ignored")
	}
}
