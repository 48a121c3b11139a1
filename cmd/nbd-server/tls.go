package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"

	"nbd.example/nbd/internal/nbdconf"
	"nbd.example/nbd/internal/opener"
	"nbd.example/nbd/internal/secrets"
	"nbd.example/nbd/internal/tlsprio"
	"nbd.example/nbd/server"
)

// startKeyReader starts the process that reads keys again when this one, as the user of
// the configuration, may not do so any more.
func (p *program) startKeyReader(g *nbdconf.Generic) (err error) {
	if g.KeyFile == "" || g.User == "" || os.Geteuid() != 0 || p.flags.Inetd {
		return nil
	}
	var names []string
	for _, name := range []string{g.KeyFile, g.CertFile, g.CACertFile} {
		if name != "" {
			names = append(names, p.env.open.Abs(name))
		}
	}
	p.keys, err = secrets.Start(names)
	return err
}

// readKey reads a file of keys or certificates: by that process, if it knows the file.
func (p *program) readKey(name string) ([]byte, error) {
	if path := p.env.open.Abs(name); p.keys.Knows(path) {
		return p.keys.Read(path)
	}
	text, err := opener.ReadFile(p.env.open, name, secrets.Limit)
	if errors.Is(err, fs.ErrPermission) && p.dropped {
		err = fmt.Errorf("%w; the server is not root any more, and can read as root only the files that were named when it was started: restart it", err)
	}
	return text, err
}

// tlsConfig reads the keys and certificates that [generic] names.
func (p *program) tlsConfig(g *nbdconf.Generic) (server.TLSMode, *tls.Config, error) {
	if g.KeyFile == "" {
		return server.NoTLS, nil, nil
	}
	var errs []error
	read := func(key, name string) []byte {
		text, err := p.readKey(name)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %s: %w", where(g, key), key, err))
		}
		return text
	}
	keyText, certText := read("keyfile", g.KeyFile), read("certfile", g.CertFile)
	c := &tls.Config{
		MinVersion: tls.VersionTLS12, MaxVersion: tls.VersionTLS13,
		// Small records first would only cost time: nobody waits for a page.
		DynamicRecordSizingDisabled: true,
	}
	if g.CACertFile != "" {
		c.ClientCAs, c.ClientAuth = x509.NewCertPool(), tls.RequireAndVerifyClientCert
		if text := read("cacertfile", g.CACertFile); text != nil && !c.ClientCAs.AppendCertsFromPEM(text) {
			errs = append(errs, fmt.Errorf("%s: cacertfile: %s holds no certificate in PEM form", where(g, "cacertfile"), g.CACertFile))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return server.NoTLS, nil, err
	}
	cert, err := tls.X509KeyPair(certText, keyText)
	if err != nil {
		return server.NoTLS, nil, fmt.Errorf("%s: keyfile %s and certfile %s: %w", where(g, "keyfile"), g.KeyFile, g.CertFile, err)
	}
	c.Certificates = []tls.Certificate{cert}
	min, max, unknown, err := tlsprio.Versions(g.TLSPrio)
	if err != nil {
		return server.NoTLS, nil, fmt.Errorf("%s: tlsprio: %w", where(g, "tlsprio"), err)
	}
	if min != 0 {
		c.MinVersion = min
	}
	if max != 0 {
		c.MaxVersion = max
	}
	if len(unknown) > 0 {
		p.log.Warn(fmt.Sprintf("%s: tlsprio: no effect of %s; the suites of Go's crypto/tls are used", where(g, "tlsprio"), strings.Join(unknown, ":")))
	}
	if g.DemandsTLS() {
		return server.Forced, c, nil
	}
	return server.Selective, c, nil
}

func where(g *nbdconf.Generic, key string) string {
	if pos, ok := g.Where(key); ok {
		return pos.String()
	}
	pos, _ := g.Where("keyfile")
	return pos.String()
}
