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

	"nbd.example/nbd/internal/testgate"
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
		return exec.Command(testgate.Find("nbdkit"), append(args, "memory", "1M")...)
	}},
	{"nbdkit-newstyle", func(t *testing.T, socket, _ string) *exec.Cmd {
		return exec.Command(testgate.Find("nbdkit"), "-f", "-U", socket, "--mask-handshake=0", "memory", "1M")
	}},
	{"qemu-nbd", func(t *testing.T, socket, certs string) *exec.Cmd {
		args := []string{"-f", "raw", "-k", socket, "-x", "disk", "-D", "a disk", "-t"}
		if certs != "" {
			args = append(args, "--object", "tls-creds-x509,id=tls0,endpoint=server,verify-peer=no,dir="+certs, "--tls-creds", "tls0")
		}
		return exec.Command(testgate.Find("qemu-nbd"), append(args, image(t))...)
	}},
	{"nbd-server", func(t *testing.T, socket, certs string) *exec.Cmd {
		config := "[generic]\nunixsock = " + socket + "\nallowlist = true\n"
		if certs != "" {
			config += fmt.Sprintf("certfile = %[1]s/server-cert.pem\nkeyfile = %[1]s/server-key.pem\ncacertfile = %[1]s/ca-cert.pem\nforce_tls = true\n", certs)
		}
		path := filepath.Join(t.TempDir(), "config")
		must(os.WriteFile(path, []byte(config+"[disk]\nexportname = "+image(t)+"\nflush = true\n"), 0o600))
		return exec.Command(testgate.Find("nbd-server"), "-d", "-C", path)
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

// Our client against the servers of others: recorded with -peer-update, and replayed
// from the record, which needs no peers.
func TestPeerTranscript(t *testing.T) {
	eachPeer(t, func(t *testing.T, p *peer, c *conversation) { meet(t, p, c, *peerUpdate) })
}

// TestPeersStillSay compares the records with what the peers of this machine say. Other
// versions may say something else, so it runs only where those that were recorded must be.
func TestPeersStillSay(t *testing.T) {
	testgate.Requires(t, testgate.AskedOrMust("peers"), testgate.Program("nbdkit", "qemu-nbd", "nbd-server"))
	eachPeer(t, func(t *testing.T, p *peer, c *conversation) { meet(t, p, c, true) })
	t.Run("nbdkit-oldstyle/go", func(t *testing.T) { meetOldstyle(t, true) })
}

// eachPeer runs a test for each peer and each conversation with it.
func eachPeer(t *testing.T, test func(*testing.T, *peer, *conversation)) {
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
			t.Run(p.name+"/"+c.name, func(t *testing.T) { test(t, &p, &c) })
		}
	}
}

// meet talks to the peer itself, or to what was recorded of it.
func meet(t *testing.T, p *peer, c *conversation, live bool) {
	name := "peer-" + p.name + "-" + c.name
	got := &transcript{about: fmt.Sprintf("Our client and %s: %s.", p.name, c.name)}
	var conn net.Conn
	if live {
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

// dialPeer starts the peer and connects to it.
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
			t.Logf("%s said: %s\nif it has another version, and rightly says something else, record it by: go test ./handshake -run Peer -peer-update", p.name, log.String())
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
