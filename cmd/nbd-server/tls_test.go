package main

import (
	"crypto/tls"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"nbd.example/nbd/internal/opener"
	"nbd.example/nbd/internal/serverflags"
	"nbd.example/nbd/server"
	"nbd.example/nbd/test/harness"
)

// parsed is a program that has read its command line and does not run.
func parsed(t *testing.T, dir string, args ...string) *program {
	t.Helper()
	flags, err := serverflags.Parse(args)
	if err != nil {
		t.Fatal(err)
	}
	return &program{
		env: &environment{open: opener.OS{Dir: dir}, getenv: os.Getenv}, flags: flags,
		log: slog.New(slog.DiscardHandler),
	}
}

func TestTLSConfig(t *testing.T) {
	dir := t.TempDir()
	authority := harness.NewAuthority(t, dir, "authority")
	folder := authority.Issue(t, "server", "server", "localhost")
	cert, key := filepath.Join(folder, "server-cert.pem"), filepath.Join(folder, "server-key.pem")
	both := write(t, dir, "both.pem", read(t, key)+read(t, cert))
	empty := write(t, dir, "empty.pem", "")
	for _, c := range []struct {
		lines string
		mode  server.TLSMode
		auth  tls.ClientAuthType
		err   string
	}{
		{"", server.NoTLS, 0, ""},
		{"keyfile = " + key + "\ncertfile = " + cert, server.Selective, tls.NoClientCert, ""},
		{"keyfile = " + both, server.Selective, tls.NoClientCert, ""},
		{"keyfile = " + key + "\ncertfile = " + cert + "\nforce_tls = true", server.Forced, tls.NoClientCert, ""},
		{"keyfile = " + key + "\ncertfile = " + cert + "\ncacertfile = " + authority.CA(), server.Selective, tls.RequireAndVerifyClientCert, ""},
		{"keyfile = " + key + "\ncertfile = " + cert + "\ncacertfile = " + empty, 0, 0, "CONF:4: cacertfile: "},
		{"keyfile = " + key + "\ncertfile = " + empty, 0, 0, "CONF:2: keyfile "},
		{"keyfile = " + key + "\ncertfile = /none", 0, 0, "CONF:3: certfile: open /none: "},
	} {
		conf := write(t, dir, "c.conf", "[generic]\n"+c.lines+"\n[e]\nexportname = /e\n")
		p := parsed(t, dir, "-C", conf)
		config, problems, err := p.load()
		if err != nil || problems.Err() != nil {
			t.Fatal(err, problems)
		}
		mode, got, err := p.tlsConfig(&config.Generic)
		if c.err != "" {
			if want := strings.ReplaceAll(c.err, "CONF", conf); err == nil || !strings.HasPrefix(err.Error(), want) {
				t.Errorf("%s: %v, want %s", c.lines, err, want)
			}
			continue
		}
		if err != nil || mode != c.mode || (got != nil) != (mode != server.NoTLS) || got != nil && got.ClientAuth != c.auth {
			t.Errorf("%s: mode %v, %v, %v", c.lines, mode, got, err)
		}
	}
}

func read(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
