package handshake

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"nbd.example/nbd/proto"
)

var peerUpdate = flag.Bool("peer-update", false, "record the transcripts against nbdkit, qemu-nbd and nbd-server again")

// A peer is another program's server, with an export "disk" of 1 MiB. command
// gets the path of its socket and a directory with certificates or "".
type peer struct {
	name    string
	command func(t *testing.T, socket, certs string) *exec.Cmd
}

var peers = []peer{
	{"nbdkit", func(t *testing.T, socket, certs string) *exec.Cmd {
		args := []string{"-f", "-U", socket}
		if certs != "" {
			args = append(args, "--tls=require", "--tls-certificates="+certs)
		}
		return exec.Command("nbdkit", append(args, "memory", "1M")...)
	}},
	{"nbdkit-newstyle", func(t *testing.T, socket, _ string) *exec.Cmd {
		return exec.Command("nbdkit", "-f", "-U", socket, "--mask-handshake=0", "memory", "1M")
	}},
	{"qemu-nbd", func(t *testing.T, socket, certs string) *exec.Cmd {
		args := []string{"-f", "raw", "-k", socket, "-x", "disk", "-D", "a disk", "-t"}
		if certs != "" {
			args = append(args, "--object", "tls-creds-x509,id=tls0,endpoint=server,verify-peer=no,dir="+certs, "--tls-creds", "tls0")
		}
		return exec.Command("qemu-nbd", append(args, image(t))...)
	}},
	{"nbd-server", func(t *testing.T, socket, certs string) *exec.Cmd {
		config := "[generic]\nunixsock = " + socket + "\nallowlist = true\n"
		if certs != "" {
			config += fmt.Sprintf("certfile = %[1]s/server-cert.pem\nkeyfile = %[1]s/server-key.pem\ncacertfile = %[1]s/ca-cert.pem\nforce_tls = true\n", certs)
		}
		path := filepath.Join(t.TempDir(), "config")
		must(os.WriteFile(path, []byte(config+"[disk]\nexportname = "+image(t)+"\nflush = true\n"), 0o600))
		return exec.Command("nbd-server", "-d", "-C", path)
	}},
}

func image(t *testing.T) string {
	path := filepath.Join(t.TempDir(), "image")
	must(os.WriteFile(path, make([]byte, 1<<20), 0o600))
	return path
}

// certDir writes the certificates as all peers want them.
func certDir(t *testing.T) string {
	dir := t.TempDir()
	p := testPKI()
	write := func(name, kind string, der []byte) {
		must(os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
	}
	key, err := x509.MarshalPKCS8PrivateKey(p.server.PrivateKey)
	must(err)
	write("ca-cert.pem", "CERTIFICATE", p.ca)
	write("server-cert.pem", "CERTIFICATE", p.server.Certificate[0])
	write("server-key.pem", "PRIVATE KEY", key)
	return dir
}

// Our client against the servers of others: recorded once with -peer-update,
// replayed from the record ever after.
func TestPeerTranscript(t *testing.T) {
	allContexts := ClientConfig{Export: "disk", Contexts: []string{"base:allocation"}, Want: []proto.Info{proto.InfoName, proto.InfoDescription}}
	talks := []conversation{
		{name: "go", run: negotiate(allContexts)},
		{name: "look", run: look},
		{name: "export-name", setup: Setup{Refuse: proto.FlagNoZeroes}, run: func(ctx context.Context, c *Client) (*Agreement, error) { return c.ExportName(ctx, "disk") }},
		{name: "abort", run: func(ctx context.Context, c *Client) (*Agreement, error) {
			if err := c.Abort(ctx); err != nil {
				return nil, err
			}
			return nil, errors.New("aborted, as intended")
		}},
		{name: "tls", run: func(ctx context.Context, c *Client) (*Agreement, error) {
			c.List(ctx) // in clear
			cfg := allContexts
			cfg.TLS = clientTLS()
			cfg.TLS.Certificates = []tls.Certificate{testPKI().client} // nbd-server insists
			return c.Negotiate(ctx, cfg)
		}},
	}
	for _, p := range peers {
		for _, c := range talks {
			newstyle := p.name == "nbdkit-newstyle"
			if newstyle && c.name != "go" {
				continue
			}
			t.Run(p.name+"/"+c.name, func(t *testing.T) { meet(t, &p, &c) })
		}
	}
}

func meet(t *testing.T, p *peer, c *conversation) {
	name := "peer-" + p.name + "-" + c.name
	got := &transcript{about: fmt.Sprintf("Our client and %s: %s.", p.name, c.name)}
	var conn net.Conn
	if *peerUpdate {
		conn = dialPeer(t, p, c.name == "tls")
	} else {
		text, err := os.ReadFile(filepath.Join("testdata", name+".txt"))
		must(err)
		recorded, err := parseTranscript(string(text))
		must(err)
		conn = newRawServer(t, "unix", recorded.replay)
	}
	setup := c.setup
	setup.Trace = got.add
	got.end = describe(setup.run(t, conn, c.run))
	conn.Close()
	got.check(t, name, *peerUpdate)
}

// dialPeer starts the peer and connects to it. It is only used for recording.
func dialPeer(t *testing.T, p *peer, withTLS bool) net.Conn {
	socket := filepath.Join(t.TempDir(), "s")
	certs := ""
	if withTLS {
		certs = certDir(t)
	}
	cmd := p.command(t, socket, certs)
	var log strings.Builder
	cmd.Stdout, cmd.Stderr = &log, &log
	must(cmd.Start())
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if t.Failed() {
			t.Logf("%s said: %s", p.name, log.String())
		}
	})
	for end := time.Now().Add(10 * time.Second); ; {
		conn, err := net.Dial("unix", socket)
		if err == nil {
			t.Cleanup(func() { conn.Close() })
			return conn
		}
		if time.Now().After(end) {
			t.Fatalf("%s does not listen: %v", p.name, err)
		}
		time.Sleep(10 * time.Millisecond) // there is nothing to wait for: the peer tells nobody
	}
}
