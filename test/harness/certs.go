package harness

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// Authority signs certificates for tests.
type Authority struct {
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// NewAuthority makes one. Its folders lie below dir.
func NewAuthority(t testing.TB, dir, name string) *Authority {
	t.Helper()
	a := &Authority{dir: filepath.Join(dir, name), key: newKey(t)}
	tmpl := template(t, name)
	tmpl.IsCA = true
	tmpl.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	a.cert = sign(t, tmpl, tmpl, &a.key.PublicKey, a.key)
	a.Folder(t, "ca")
	return a
}

// Folder makes a folder with the certificate of the authority in ca-cert.pem, and
// returns its path. Peers take folders with such names.
func (a *Authority) Folder(t testing.TB, name string) string {
	t.Helper()
	dir := filepath.Join(a.dir, name)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	writePEM(t, filepath.Join(dir, "ca-cert.pem"), "CERTIFICATE", a.cert.Raw)
	return dir
}

// CA returns the path of the authority's certificate.
func (a *Authority) CA() string { return filepath.Join(a.dir, "ca", "ca-cert.pem") }

// Issue makes a folder with ca-cert.pem, ROLE-cert.pem and ROLE-key.pem, where role
// is "server" or "client", and returns its path. The certificate of a server is
// good for the hosts.
func (a *Authority) Issue(t testing.TB, folder, role string, hosts ...string) string {
	t.Helper()
	dir := a.Folder(t, folder)
	tmpl := template(t, folder)
	tmpl.KeyUsage = x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment
	tmpl.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	if role == "server" {
		tmpl.ExtKeyUsage[0] = x509.ExtKeyUsageServerAuth
	}
	for _, h := range hosts {
		if ip := net.ParseIP(h); ip != nil {
			tmpl.IPAddresses = append(tmpl.IPAddresses, ip)
		} else {
			tmpl.DNSNames = append(tmpl.DNSNames, h)
		}
	}
	key := newKey(t)
	cert := sign(t, tmpl, a.cert, &key.PublicKey, a.key)
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	writePEM(t, filepath.Join(dir, role+"-cert.pem"), "CERTIFICATE", cert.Raw)
	writePEM(t, filepath.Join(dir, role+"-key.pem"), "PRIVATE KEY", der)
	return dir
}

// ServerLines are the lines of [generic] for the server's certificate in dir, as
// Issue makes it. With a ca, clients must show a certificate that it signed.
func ServerLines(dir, ca string) string {
	lines := fmt.Sprintf("certfile = %s\nkeyfile = %s\n", filepath.Join(dir, "server-cert.pem"), filepath.Join(dir, "server-key.pem"))
	if ca != "" {
		lines += "cacertfile = " + ca + "\n"
	}
	return lines
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// template is what all certificates have in common. They last a day.
func template(t testing.TB, name string) *x509.Certificate {
	t.Helper()
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		t.Fatal(err)
	}
	return &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: name},
		NotBefore:             time.Now().Add(-time.Hour),
		NotAfter:              time.Now().Add(24 * time.Hour),
		BasicConstraintsValid: true,
	}
}

func sign(t testing.TB, tmpl, parent *x509.Certificate, pub *ecdsa.PublicKey, key *ecdsa.PrivateKey) *x509.Certificate {
	t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, pub, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func writePEM(t testing.TB, path, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}
