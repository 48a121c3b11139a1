package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"time"
	"unicode"

	"nbd.example/nbd/handshake"
	"nbd.example/nbd/internal/opener"
	"nbd.example/nbd/proto"
	"nbd.example/nbd/supervise"
	"nbd.example/nbd/uri"
)

// exports answers -l: it prints what the server exports, a name in each line, and what
// the server says of it.
func (p *program) exports(ctx context.Context) int {
	spec, err := p.spec(p.flags)
	if err != nil {
		return p.fail(ctx, err)
	}
	var list []proto.ServerReply
	for i, text := range spec.URIs {
		u, parseErr := uri.Parse(text)
		if parseErr != nil {
			return p.fail(ctx, parseErr)
		}
		if list, err = p.list(ctx, u, spec); err == nil {
			break
		}
		if i < len(spec.URIs)-1 {
			p.log.Warn(err.Error())
		}
	}
	if err != nil {
		return p.fail(ctx, err)
	}
	for _, e := range list {
		line := printable(e.Export)
		if e.Description != "" {
			line += ": " + printable(e.Description)
		}
		if _, err := fmt.Fprintln(p.env.stdout, line); err != nil {
			return p.tell(err)
		}
	}
	return exitOK
}

// listLimit bounds the question for the exports.
const listLimit = 10 * time.Second

// list asks a server for its exports.
func (p *program) list(ctx context.Context, u *uri.URI, spec *supervise.Spec) ([]proto.ServerReply, error) {
	limit := spec.ConnectTimeout
	if limit == 0 {
		limit = listLimit
	}
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("no answer in %v", limit))
	defer cancel()
	network, address := u.Dial()
	conn, err := new(net.Dialer).DialContext(ctx, network, address)
	if err != nil {
		return nil, fmt.Errorf("connect to %v: %w", u, err)
	}
	h, err := handshake.NewClient(ctx, conn)
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("connect to %v: %w", u, err)
	}
	defer h.Abort(ctx)
	if u.TLS {
		config, err := p.tlsConfig(u, spec.TLS)
		if err != nil {
			return nil, err
		}
		if err := h.StartTLS(ctx, config); err != nil {
			return nil, fmt.Errorf("connect to %v: %w", u, err)
		}
	}
	list, err := h.List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list the exports of %v: %w", u, err)
	}
	return list, nil
}

// maxPEM bounds a file of keys or certificates, in bytes.
const maxPEM = 16 << 20

// tlsConfig is what the list of exports is asked with.
func (p *program) tlsConfig(u *uri.URI, files *supervise.TLSFiles) (*tls.Config, error) {
	if files == nil {
		files = &supervise.TLSFiles{}
	}
	f := *files
	if dir := u.TLSCertificates; dir != "" && f.CA == "" {
		f.CA = filepath.Join(dir, "ca-cert.pem")
		if cert := filepath.Join(dir, "client-cert.pem"); f.Cert == "" && p.exists(cert) {
			f.Cert, f.Key = cert, filepath.Join(dir, "client-key.pem")
		}
	}
	c := &tls.Config{
		MinVersion: f.MinVersion, MaxVersion: f.MaxVersion,
		ServerName: u.Host, InsecureSkipVerify: f.Insecure || u.TLSVerifyPeer == uri.VerifyNo,
	}
	for _, name := range []string{u.TLSHostname, f.Name} {
		if name != "" {
			c.ServerName = name
		}
	}
	if f.CA != "" {
		text, err := opener.ReadFile(p.env.open, f.CA, maxPEM)
		if err != nil {
			return nil, fmt.Errorf("-cacertfile: %w", err)
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(text) {
			return nil, fmt.Errorf("-cacertfile: %s holds no certificate in PEM form", f.CA)
		}
	}
	if f.Cert != "" {
		cert, certErr := opener.ReadFile(p.env.open, f.Cert, maxPEM)
		key, keyErr := opener.ReadFile(p.env.open, f.Key, maxPEM)
		if err := errors.Join(certErr, keyErr); err != nil {
			return nil, err
		}
		pair, err := tls.X509KeyPair(cert, key)
		if err != nil {
			return nil, fmt.Errorf("-certfile %s and -keyfile %s: %w", f.Cert, f.Key, err)
		}
		c.Certificates = []tls.Certificate{pair}
	}
	return c, nil
}

func (p *program) exists(name string) bool {
	_, err := p.env.open.Stat(name)
	return err == nil
}

// printable quotes text from a server if it holds what a terminal would obey.
func printable(s string) string {
	if strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return strconv.Quote(s)
	}
	return s
}
