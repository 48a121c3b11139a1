package client

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"nbd.example/nbd/uri"
)

// Files in the directory that tls-certificates names, as libnbd and QEMU call them.
const (
	caFile   = "ca-cert.pem"
	certFile = "client-cert.pem"
	keyFile  = "client-key.pem"
)

// tlsFor completes c by what the URI says of TLS.
func (c *Config) tlsFor(u *uri.URI) error {
	switch {
	case u.TLS:
		c.TLSOptional = false
	case c.TLS == nil:
		return nil
	}
	if u.TLSType != "" && u.TLSType != "x509" || u.TLSPSKFile != "" {
		return fmt.Errorf("TLS without certificates (tls-type=%s): %w", u.TLSType, errors.ErrUnsupported)
	}
	t := &tls.Config{}
	if c.TLS != nil {
		t = c.TLS.Clone()
	}
	c.TLS = t
	switch {
	case u.TLSHostname != "":
		t.ServerName = u.TLSHostname
	case t.ServerName == "":
		t.ServerName = u.Host
	}
	if u.TLSVerifyPeer == uri.VerifyNo {
		t.InsecureSkipVerify = true
	} else if u.TLSVerifyPeer == uri.VerifyYes {
		t.InsecureSkipVerify = false
	}
	if t.ServerName == "" && !t.InsecureSkipVerify {
		return errors.New("there is no host name to verify the server's certificate against: add tls-hostname=NAME, or tls-verify-peer=0 to verify nothing")
	}
	if u.TLSCertificates != "" {
		return loadCertificates(t, u.TLSCertificates)
	}
	return nil
}

// loadCertificates reads the authority, and the client's own certificate if
// there is one.
func loadCertificates(t *tls.Config, dir string) error {
	pem, err := os.ReadFile(filepath.Join(dir, caFile))
	switch {
	case err == nil:
		t.RootCAs = x509.NewCertPool()
		if !t.RootCAs.AppendCertsFromPEM(pem) {
			return fmt.Errorf("%s: there is no certificate in it", filepath.Join(dir, caFile))
		}
	case !errors.Is(err, fs.ErrNotExist) || !t.InsecureSkipVerify:
		return fmt.Errorf("tls-certificates: %w", err)
	}
	cert, err := tls.LoadX509KeyPair(filepath.Join(dir, certFile), filepath.Join(dir, keyFile))
	if err == nil {
		t.Certificates = []tls.Certificate{cert}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("tls-certificates: %w", err)
	}
	return nil
}
