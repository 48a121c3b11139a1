package main

import (
	"bytes"
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

func TestPlainLog(t *testing.T) {
	var b bytes.Buffer
	l := &logs{sink: func(_ slog.Level, line []byte) { b.Write(line) }}
	log := slog.New(l.handler())
	log.With("client", "1.2.3.4:5").Info("client connected", "export", "a b", "empty", "", slog.Group("g", "x", 1))
	log.WithGroup("h").Warn("careful\x1b[31m", "y", "\n")
	log.Error("/etc/nbd-server/config:14: bad")
	log.Debug("not this")
	want := `nbd-server: client connected client=1.2.3.4:5 export="a b" empty="" g.x=1
nbd-server: warning: careful\x1b[31m h.y="\n"
nbd-server: /etc/nbd-server/config:14: bad
`
	if b.String() != want {
		t.Errorf("got\n%swant\n%s", b.String(), want)
	}
}

func TestJournal(t *testing.T) {
	var b bytes.Buffer
	l := &logs{format: "json", sink: journal(&b), level: slog.LevelDebug}
	log := slog.New(l.handler())
	for _, level := range []slog.Level{slog.LevelDebug, slog.LevelInfo, slog.LevelWarn, slog.LevelError} {
		log.Log(t.Context(), level, "m")
	}
	for i, line := range strings.Split(strings.TrimSpace(b.String()), "\n") {
		if want := []string{"<7>{", "<6>{", "<4>{", "<3>{"}[i]; !strings.HasPrefix(line, want) {
			t.Errorf("line %d is %q, want one that begins with %q", i, line, want)
		}
	}
}
