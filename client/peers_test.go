package client_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"nbd.example/nbd/client"
	"nbd.example/nbd/internal/testgate"
)

// A peer is a server by others, as installed on this machine.
type peer struct {
	name  string
	start func(t testing.TB, dir, socket string, size int64) *exec.Cmd
	once  bool // it ends with its first connection
	// What the version that Debian has lacks.
	noStructured, noStatus bool
}

var peers = []peer{
	{name: "nbdkit", start: func(t testing.TB, dir, socket string, size int64) *exec.Cmd {
		return exec.Command(testgate.Find("nbdkit"), "-f", "--exit-with-parent", "-U", socket, "memory", fmt.Sprint(size))
	}},
	{name: "qemu-nbd", start: func(t testing.TB, dir, socket string, size int64) *exec.Cmd {
		return exec.Command(testgate.Find("qemu-nbd"), "-f", "raw", "-t", "-x", "", "-e", "0", "--discard=unmap", "-k", socket, image(t, dir, size))
	}},
	{name: "nbd-server", once: true, noStructured: true, noStatus: true, start: func(t testing.TB, dir, socket string, size int64) *exec.Cmd {
		config := filepath.Join(dir, "config")
		text := fmt.Sprintf("[generic]\n\tunixsock = %s\n\tallowlist = true\n[default]\n\texportname = %s\n\tflush = true\n\tfua = true\n\ttrim = true\n", socket, image(t, dir, size))
		if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return exec.Command(testgate.Find("nbd-server"), "-C", config, "-d")
	}},
}

func image(t testing.TB, dir string, size int64) string {
	path := filepath.Join(dir, "image")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
	return path
}

// serve starts the peer and returns where it listens.
func (p *peer) serve(t testing.TB, size int64) (uri string, stop func()) {
	t.Helper()
	testgate.Requires(t, testgate.Program(p.name))
	dir := tempDir(t)
	socket := filepath.Join(dir, "s")
	stop = listen(t, socket, p.start(t, dir, socket, size))
	if p.name == "nbd-server" {
		return "nbd+unix:///default?socket=" + socket, stop
	}
	return "nbd+unix:///?socket=" + socket, stop
}

// listen starts a server and waits until its socket is there. It does not try
// to connect: nbd-server, in the foreground, serves one connection only. The server ends
// with stop or with the test.
func listen(t testing.TB, socket string, cmd *exec.Cmd) (stop func()) {
	t.Helper()
	log, err := os.Create(socket + ".log") // not a pipe, which a child in the background would hold open
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	said := func() []byte {
		b, _ := os.ReadFile(log.Name())
		return b
	}
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { cmd.Wait(); close(ended) }()
	stop = func() { cmd.Process.Kill(); <-ended }
	stop = sync.OnceFunc(stop)
	t.Cleanup(stop)
	limit := time.After(20 * time.Second)
	for {
		if _, err := os.Stat(socket); err == nil {
			return stop
		}
		select {
		case <-ended:
			t.Fatalf("%v ended: %s", cmd.Args, said())
		case <-limit:
			t.Fatalf("%v does not listen: %s", cmd.Args, said())
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// tempDir is short enough for a unix socket's name.
func tempDir(t testing.TB) string {
	dir, err := os.MkdirTemp("", "nbd")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// patiently connects to a server that has bound its socket, and may not listen yet.
func patiently(ctx context.Context, network, address string) (net.Conn, error) {
	for {
		c, err := new(net.Dialer).DialContext(ctx, network, address)
		if !errors.Is(err, syscall.ECONNREFUSED) {
			return c, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(time.Millisecond):
		}
	}
}

func dial(t testing.TB, uri string, cfg *client.Config) *client.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	c, err := client.Dial(ctx, uri, cfg)
	if err != nil {
		t.Fatal(err)
	}
	return c
}
