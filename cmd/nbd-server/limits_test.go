package main

import (
	"testing"
	"time"

	"nbd.example/nbd/internal/nbdconf"
	"nbd.example/nbd/internal/serverflags"
	"nbd.example/nbd/server"
	"nbd.example/nbd/transmission"
)

// TestLimits: each key of [generic] reaches what obeys it, and what all connections share
// stays so in a reload.
func TestLimits(t *testing.T) {
	dir := t.TempDir()
	p := parsed(t, dir, "-C", write(t, dir, "c.conf", `[generic]
max_threads = 3
maxconnections_total = 100
maxconnections_client = 10
maxmemory = 67108864
maxpayload = 134217728
maxrequests = 20
handshake_timeout = 5
stuck_timeout = -1
[e]
exportname = memory:1M
`))
	conf, problems, err := p.load()
	if err != nil || len(problems) > 0 {
		t.Fatal(problems, err)
	}
	g := &conf.Generic
	bounds := func(g *nbdconf.Generic) (c server.Config) {
		p.bound(&c, g)
		return c
	}
	none := func(c server.Config) bool {
		return c.MaxConnections == 0 && c.MaxPerClient == 0 && c.HandshakeTimeout == 0 && c.Transmission == transmission.Config{}
	}
	if c := bounds(&nbdconf.Generic{}); !none(c) {
		t.Errorf("without keys: %+v, want the defaults of the server", c)
	}
	c := bounds(g)
	shared := c.Transmission.Memory
	c.Transmission.Memory = nil
	if c.MaxConnections != 100 || c.MaxPerClient != 10 || c.HandshakeTimeout != 5*time.Second ||
		c.Transmission != (transmission.Config{MaxPayload: 128 << 20, MaxRequests: 20, MaxBuffered: 32 << 20, Workers: 3, StuckTimeout: -time.Second}) {
		t.Errorf("%+v", c)
	}
	if shared == nil || bounds(g).Transmission.Memory != shared {
		t.Error("connections from before and after a reload share no memory")
	}
	g.Limits.MaxMemory = 4 << 30
	if c := bounds(g).Transmission; c.Memory == shared || c.MaxBuffered != 64<<20 {
		t.Errorf("with more memory: %+v", c)
	}
	p.flags.MaxConnections = 7
	if n := bounds(g).MaxConnections; n != 7 {
		t.Errorf("-M 7 became %d", n)
	}
	p.flags.File = "/disk"
	if n := bounds(g).MaxConnections; n != 100 {
		t.Errorf("-M 7 with a file became %d for the server", n)
	}
}

// TestSwapLimits: what requests take is bounded for all connections together, and stays
// so in a reload.
func TestSwapLimits(t *testing.T) {
	g := &nbdconf.Generic{Limits: nbdconf.Limits{MaxMemory: 1 << 30}}
	p := &program{flags: &serverflags.Flags{}, swap: true}
	bounds := func() transmission.Config {
		var c server.Config
		p.bound(&c, g)
		return c.Transmission
	}
	c := bounds()
	if c.Memory == nil || c.MaxBuffered != 4<<20 || c.Workers != 8 || bounds().Memory != c.Memory {
		t.Errorf("%+v", c)
	}
	g.MaxThreads = 3
	if n := bounds().Workers; n != 3 {
		t.Errorf("with max_threads = 3: %d workers", n)
	}
}
