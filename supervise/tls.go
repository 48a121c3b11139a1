package supervise

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
	"slices"
	"strings"
	"sync"

	"nbd.example/nbd/uri"
)

// tlsSource makes the TLS configuration for one server. Its files are read when the
// device is attached. Later they may be on a device that cannot be read, so what was
// read is used, and they are read anew on the side, when a connection has failed:
// that is how renewed certificates get in.
type tlsSource struct {
	load func() (*tls.Config, error)

	mu     sync.Mutex
	config *tls.Config
	busy   bool // somebody reads the files
}

// newTLSSource reads the files that u and files name.
func newTLSSource(u *uri.URI, files *TLSFiles) (*tlsSource, error) {
	if u.TLSType != "" && u.TLSType != "x509" || u.TLSPSKFile != "" {
		return nil, fmt.Errorf("TLS without certificates (tls-type=%s): %w", u.TLSType, errors.ErrUnsupported)
	}
	var t TLSFiles
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
		return nil, errors.New("there is no host name to verify the server's certificate against: give one (tls-hostname=NAME in the URI)")
	}
	s := &tlsSource{load: t.load}
	var err error
	s.config, err = s.load()
	return s, err
}

// inDirectory names the files that libnbd and QEMU expect in a directory, where no
// others are named.
func (t *TLSFiles) inDirectory(dir string) {
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
func (t *TLSFiles) load() (*tls.Config, error) {
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

// get returns the configuration, which must not be changed.
func (s *tlsSource) get() *tls.Config {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.config
}

// refresh reads the files again, in the background, unless that is being done.
func (s *tlsSource) refresh() {
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

// peerIdentity says who the server is, so that its next certificate, after a renewal,
// says the same: by the names in it and who vouches for them. Where nothing is verified
// it is the key alone that can tell.
func peerIdentity(state *tls.ConnectionState) string {
	if state == nil || len(state.PeerCertificates) == 0 {
		return ""
	}
	leaf := state.PeerCertificates[0]
	if len(state.VerifiedChains) == 0 {
		sum := sha256.Sum256(leaf.RawSubjectPublicKeyInfo)
		return "key " + hex.EncodeToString(sum[:])
	}
	names := slices.Clone(leaf.DNSNames)
	for _, ip := range leaf.IPAddresses {
		names = append(names, ip.String())
	}
	for _, u := range leaf.URIs {
		names = append(names, u.String())
	}
	slices.Sort(names)
	chain := state.VerifiedChains[0]
	return fmt.Sprintf("%s (%s) by %s", leaf.Subject, strings.Join(slices.Compact(names), ", "), chain[len(chain)-1].Subject)
}
