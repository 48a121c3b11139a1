package interop

import (
	"bytes"
	"fmt"
	"net/url"
	"path/filepath"
	"testing"

	"nbd.example/nbd/block"
	"nbd.example/nbd/block/blocktest"
	"nbd.example/nbd/client"
	"nbd.example/nbd/internal/testgate"
	"nbd.example/nbd/test/harness"
)

// styles are the kinds of replies that our client can be made to ask for.
var styles = []struct {
	name   string
	config client.Config
}{
	{"extended", client.Config{}},
	{"structured", client.Config{NoExtended: true}},
	{"simple", client.Config{NoExtended: true, NoStructured: true}},
}

// TestClientConformance runs the suite of back ends through our client, against our
// server as it is built: what a device promises must survive both.
//
// Not parallel: the suite counts the open files of this process.
func TestClientConformance(t *testing.T) {
	for _, c := range []struct {
		name   string
		export func(dir string, size int64) string
	}{
		{"memory", func(_ string, size int64) string { return section("disk", fmt.Sprintf("memory:%d", size)) }},
		{"file", func(dir string, size int64) string { return section("disk", filepath.Join(dir, "image")) }},
		{"copyonwrite", func(dir string, size int64) string {
			return section("disk", filepath.Join(dir, "image"), "copyonwrite = true")
		}},
	} {
		for _, style := range styles {
			t.Run(c.name+", "+style.name, func(t *testing.T) {
				var servers []*harness.Server
				blocktest.Run(t, blocktest.Target{
					Steps: 300,
					Open: func(t testing.TB, size int64) (block.Backend, error) {
						// The suite uses two devices at once, at most.
						if n := len(servers); n >= 2 {
							servers[n-2].Stop()
						}
						dir := harness.Dir(t)
						harness.Image(t, dir, "image", make([]byte, size))
						s := harness.StartIn(t, dir, harness.Config{Exports: c.export(dir, size)})
						servers = append(servers, s)
						return client.Dial(t.Context(), s.URI("disk"), &style.config)
					},
				})
			})
		}
	}
}

// TestClientTLS uses servers by others, and ours, over TLS.
func TestClientTLS(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, program string
		start         func(t *testing.T, dir, certificates string, port int)
	}{
		{"nbdkit", "nbdkit", func(t *testing.T, _, certificates string, port int) {
			serveBy(t, port, "nbdkit", "-f", "-i", "127.0.0.1", "-p", fmt.Sprint(port),
				"--tls=require", "--tls-verify-peer", "--tls-certificates="+certificates, "memory", "8M")
		}},
		{"qemu-nbd", "qemu-nbd", func(t *testing.T, dir, certificates string, port int) {
			image := harness.Image(t, dir, "image", make([]byte, 8*mib))
			serveBy(t, port, "qemu-nbd", "-f", "raw", "-t", "-e", "0", "-x", "disk", "-b", "127.0.0.1", "-p", fmt.Sprint(port),
				"--object", "tls-creds-x509,id=tls,endpoint=server,verify-peer=yes,dir="+certificates, "--tls-creds", "tls", image)
		}},
		{"ours", "go", func(t *testing.T, dir, certificates string, port int) {
			config := harness.ServerLines(certificates, filepath.Join(certificates, "ca-cert.pem"))
			path := harness.Image(t, dir, "config", []byte(fmt.Sprintf(
				"[generic]\nlistenaddr = 127.0.0.1\nport = %d\nforce_tls = true\n%s\n%s", port, config, section("disk", "memory:8M"))))
			serveBy(t, port, harness.Binary(t), "-n", "-C", path)
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			testgate.Requires(t, testgate.Program(c.program))
			dir := harness.Dir(t)
			k := newKeys(t, dir)
			port := harness.FreePort(t)
			c.start(t, dir, k.server, port)
			uri := func(scheme, host, folder string) string {
				return fmt.Sprintf("%s://%s:%d/disk?tls-certificates=%s", scheme, host, port, url.QueryEscape(folder))
			}
			useTLS(t, uri("nbds", "localhost", k.client))
			for name, bad := range map[string]string{
				"without TLS":                       uri("nbd", "localhost", k.client),
				"without a certificate":             uri("nbds", "localhost", k.none),
				"with a certificate from elsewhere": uri("nbds", "localhost", k.elsehow),
				"trusting somebody else":            uri("nbds", "localhost", k.foreign),
				"under another name":                uri("nbds", "localhost", k.client) + "&tls-hostname=example.com",
			} {
				if conn, err := client.Dial(t.Context(), bad, nil); err == nil {
					// Under TLS 1.3 a client learns only by its first read that its
					// certificate was refused; ours reads during the handshake.
					conn.Close()
					t.Errorf("%s: let in", name)
				}
			}
		})
	}
}

// serveBy starts a server and waits for its port.
func serveBy(t *testing.T, port int, program string, args ...string) {
	t.Helper()
	p := harness.Spawn(t, nil, program, args...)
	p.AwaitListening("tcp", fmt.Sprintf("127.0.0.1:%d", port))
}

// useTLS writes and reads through a connection that must be protected.
func useTLS(t *testing.T, uri string) {
	t.Helper()
	conn, err := client.Dial(t.Context(), uri, nil)
	if err != nil {
		t.Fatal(err)
	}
	if conn.TLS() == nil {
		t.Error("the connection is in clear")
	}
	d, err := block.New(conn)
	if err != nil {
		t.Fatal(err)
	}
	data, got := harness.Random(60, 3*mib), make([]byte, 3*mib)
	if err := d.WriteAt(t.Context(), data, 1001, 0); err != nil {
		t.Fatal(err)
	}
	if err := d.ReadAt(t.Context(), got, 1001); err != nil || !bytes.Equal(got, data) {
		t.Fatalf("read: %v; the same: %t", err, bytes.Equal(got, data))
	}
	if err := d.Flush(t.Context()); err != nil {
		t.Error(err)
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
}
