package main

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"

	"nbd.example/nbd/internal/nbdconf"
	"nbd.example/nbd/internal/opener"
	"nbd.example/nbd/server"
)

// maxPEM bounds a file of keys or certificates, in bytes.
const maxPEM = 16 << 20

// tlsConfig reads the keys and certificates that [generic] names.
func (p *program) tlsConfig(g *nbdconf.Generic) (server.TLSMode, *tls.Config, error) {
	if g.KeyFile == "" {
		return server.NoTLS, nil, nil
	}
	var errs []error
	read := func(key, name string) []byte {
		text, err := opener.ReadFile(p.env.open, name, maxPEM)
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
	unknown, err := applyPriority(c, g.TLSPrio)
	if err != nil {
		return server.NoTLS, nil, fmt.Errorf("%s: tlsprio: %w", where(g, "tlsprio"), err)
	}
	if len(unknown) > 0 {
		p.log.Warn(fmt.Sprintf("%s: tlsprio: no effect of %s; the suites of Go's crypto/tls are used", where(g, "tlsprio"), strings.Join(unknown, ":")))
	}
	if g.ForceTLS {
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

// applyPriority takes from a GnuTLS priority string what it says of versions,
// and returns the words that it does not understand.
func applyPriority(c *tls.Config, prio string) (unknown []string, err error) {
	v12, v13 := true, true
	for i, word := range strings.Split(prio, ":") {
		on := strings.HasPrefix(word, "+")
		version, isVersion := strings.CutPrefix(strings.TrimLeft(word, "+-!"), "VERS-")
		switch {
		case word == "" || word == "%SERVER_PRECEDENCE":
		case i == 0 && (word == "NORMAL" || word == "SYSTEM" || word == "@SYSTEM" || strings.HasPrefix(word, "SECURE") || word == "PERFORMANCE" || word == "PFS"):
		case isVersion && (version == "TLS-ALL" || version == "ALL"):
			v12, v13 = on, on
		case isVersion && version == "TLS1.2":
			v12 = on
		case isVersion && version == "TLS1.3":
			v13 = on
		case isVersion && !on: // older ones are off
		default:
			unknown = append(unknown, word)
		}
	}
	switch {
	case v12 && v13:
	case v12:
		c.MaxVersion = tls.VersionTLS12
	case v13:
		c.MinVersion = tls.VersionTLS13
	default:
		return unknown, fmt.Errorf("%q allows neither TLS 1.2 nor TLS 1.3", prio)
	}
	return unknown, nil
}
