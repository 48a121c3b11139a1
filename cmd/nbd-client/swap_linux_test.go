package main

import (
	"bytes"
	"errors"
	"io"
	"os"
	"strings"
	"testing"

	"nbd.example/nbd/internal/clientflags"
	"nbd.example/nbd/internal/memlock"
	"nbd.example/nbd/internal/proglog"
)

// TestSwapChain: what is swapped on goes past the page cache, asked for or not.
func TestSwapChain(t *testing.T) {
	w := newWorld(t)
	w.write("disk.img", "")
	for _, c := range []struct {
		line, want, warning string
	}{
		{"--serve disk.img", "disk.img", ""},
		{"--serve disk.img -swap", "disk.img,direct=true", ""},
		{"--serve file:disk.img,direct -swap", "disk.img,direct=true", ""},
		{"--serve file:disk.img,sync,direct=false -swap", "disk.img,direct=true,sync=true", ""},
		{"--serve multi:disk -swap", "multi:" + w.dir + "/disk,direct=true", ""},
		{"--serve memory:1M -swap", "memory:1M", "sets no memory free"},
		{"--serve memory:1M", "memory:1M", ""},
	} {
		flags, err := clientflags.Parse(strings.Fields(c.line))
		if err != nil {
			t.Fatal(err)
		}
		r, stderr, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		p := &program{env: w.environment(nil, stderr, nil), flags: flags}
		p.logs = proglog.New(proglog.Config{Name: "nbd-client", Stderr: stderr})
		p.log = p.logs.Logger()
		spec, err := p.spec(flags)
		stderr.Close()
		said, _ := io.ReadAll(r)
		r.Close()
		if err != nil || !strings.HasSuffix(spec.Serve, c.want) || bytes.Contains(said, []byte("sets no memory free")) != (c.warning != "") {
			t.Errorf("%s: %+v, %v; want %q; it said %q", c.line, spec, err, c.want, said)
		}
	}
}

// TestSwapUnprepared: a process that could not be prepared for swap does not count as
// prepared the next time.
func TestSwapUnprepared(t *testing.T) {
	env := newWorld(t).environment(nil, nil, nil)
	short := errors.New("no memory to lock")
	env.lockMemory = func(memlock.Options) ([]memlock.Warning, error) { return nil, short }
	p := &program{env: env, flags: &clientflags.Flags{}}
	for range 2 {
		if err := p.lockMemory(); !errors.Is(err, short) {
			t.Errorf("could not be prepared: %v", err)
		}
	}
	short = nil
	if err := p.lockMemory(); err != nil || !p.swap.Load() {
		t.Errorf("prepared %v, %v", p.swap.Load(), err)
	}
}
