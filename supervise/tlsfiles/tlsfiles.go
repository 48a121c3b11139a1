// Package tlsfiles makes the configuration of TLS for one server, from files that may be
// beyond reach when they are needed next: on a device that waits for that very server.
package tlsfiles

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"nbd.example/nbd/uri"
)

// Files name the files that TLS needs, by absolute paths. They are read at each
// connection, so that renewed certificates are taken. The server's name is verified,
// always, unless the URI says expressly that it need not be (tls-verify-peer=0).
type Files struct {
	Cert string `json:"cert,omitempty"`
	Key  string `json:"key,omitempty"`
	CA   string `json:"ca,omitempty"`   // "" means those of the system
	Name string `json:"name,omitempty"` // of the server; "" means the host's
	// MinVersion and MaxVersion are versions of TLS as crypto/tls counts them; 0 means
	// its defaults.
	MinVersion uint16 `json:"min_version,omitempty"`
	MaxVersion uint16 `json:"max_version,omitempty"`
	// Insecure verifies no name and no authority. Then the public key that was seen
	// first must stay the same.
	Insecure bool `json:"insecure,omitempty"`
}

// Source makes the TLS configuration for one server. Its files are read when the
// device is attached. Later they may be on a device that cannot be read, so what was
// read is used, and they are read anew on the side, when a connection has failed:
// that is how renewed certificates get in.
type Source struct {
	load func() (*tls.Config, error)

	mu     sync.Mutex
	config *tls.Config
	busy   bool // somebody reads the files
}

// New reads the files that u and files name.
func New(u *uri.URI, files *Files) (*Source, error) {
	if u.TLSType != "" && u.TLSType != "x509" || u.TLSPSKFile != "" {
		return nil, fmt.Errorf("TLS without certificates (tls-type=%s): %w", u.TLSType, errors.ErrUnsupported)
	}
	var t Files
	if files != nil {
		t = *files
	}
	if dir := u.TLSCertificates; dir != "" {
		t.inDirectory(dir)
	}
	if u.TLSHostname != "" {
		t.Name = u.TLSHostname
	} else if t.Name == "" {
		t.Name = u.Host
	}
	switch u.TLSVerifyPeer {
	case uri.VerifyNo:
		t.Insecure = true
	case uri.VerifyYes:
		t.Insecure = false
	}
	if t.Name == "" && !t.Insecure {
		return nil, errors.New("there is no host name to verify the server's certificate against: give one (-H NAME, or tls-hostname=NAME in the URI)")
	}
	s := &Source{load: t.load}
	var err error
	s.config, err = s.load()
	return s, err
}

// inDirectory names the files that libnbd and QEMU expect in a directory, where no
// others are named.
func (t *Files) inDirectory(dir string) {
	named := func(name string) string {
		path := filepath.Join(dir, name)
		if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
			return ""
		}
		return path
	}
	if t.CA == "" {
		t.CA = named("ca-cert.pem")
	}
	if t.Cert == "" {
		t.Cert, t.Key = named("client-cert.pem"), named("client-key.pem")
	}
}

// load reads the files.
func (t *Files) load() (*tls.Config, error) {
	c := &tls.Config{
		ServerName: t.Name, InsecureSkipVerify: t.Insecure,
		MinVersion: t.MinVersion, MaxVersion: t.MaxVersion,
		DynamicRecordSizingDisabled: true,
	}
	if t.CA != "" {
		pem, err := os.ReadFile(t.CA)
		if err != nil {
			return nil, fmt.Errorf("certificate authority: %w", err)
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("certificate authority: there is no certificate in %s", t.CA)
		}
	}
	if t.Cert == "" {
		return c, nil
	}
	key := t.Key
	if key == "" {
		key = t.Cert // both in one file
	}
	pair, err := tls.LoadX509KeyPair(t.Cert, key)
	if err != nil {
		return nil, fmt.Errorf("client certificate: %w", err)
	}
	c.Certificates = []tls.Certificate{pair}
	return c, nil
}

// Get returns the configuration, which must not be changed.
func (s *Source) Get() *tls.Config {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.config
}

// Refresh reads the files again, in the background, unless that is being done.
func (s *Source) Refresh() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.busy {
		return
	}
	s.busy = true
	go func() {
		config, err := s.load()
		s.mu.Lock()
		defer s.mu.Unlock()
		s.busy = false
		if err == nil {
			s.config = config
		}
	}()
}

// Identity says who the server is, so that its next certificate, after a renewal, says the
// same: by the name that was verified, whatever other names there are, and whichever
// authority that is trusted vouches for it. Where nothing is verified it is the key alone
// that can tell.
func (s *Source) Identity(state *tls.ConnectionState) string {
	switch {
	case state == nil || len(state.PeerCertificates) == 0:
		return ""
	case len(state.VerifiedChains) > 0:
		return "name " + s.Get().ServerName
	}
	sum := sha256.Sum256(state.PeerCertificates[0].RawSubjectPublicKeyInfo)
	return "key " + hex.EncodeToString(sum[:])
}
