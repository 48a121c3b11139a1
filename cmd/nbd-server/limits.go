package main

import (
	"cmp"
	"time"

	"nbd.example/nbd/internal/nbdconf"
	"nbd.example/nbd/server"
	"nbd.example/nbd/transmission"
)

// Bounds of the memory of requests where clients swap on this machine.
const (
	swapMemory   = 8 << 20 // all of them
	swapBuffered = 4 << 20 // one connection
	swapWorkers  = 8
)

// maxBuffered is what [transmission.Config.MaxBuffered] means by 0.
const maxBuffered = 64 << 20

// bound tells the server what the configuration bounds.
func (p *program) bound(c *server.Config, g *nbdconf.Generic) {
	l := &g.Limits
	c.MaxConnections, c.MaxPerClient = l.MaxConnections, l.MaxPerClient
	if p.flags.File == "" { // otherwise -M is for the file
		c.MaxConnections = cmp.Or(p.flags.MaxConnections, l.MaxConnections)
	}
	c.HandshakeTimeout = time.Duration(l.HandshakeTimeout) * time.Second
	c.Transmission = transmission.Config{
		MaxPayload: int(l.MaxPayload), MaxRequests: l.MaxRequests, Workers: g.MaxThreads,
		StuckTimeout: time.Duration(l.StuckTimeout) * time.Second,
	}
	t := &c.Transmission
	switch {
	case p.swap:
		// Swap is written when memory is short: whatever is taken for it, beyond what the
		// process has locked already, may not be there.
		t.Memory, t.MaxBuffered, t.Workers = p.memory.of(swapMemory), swapBuffered, cmp.Or(g.MaxThreads, swapWorkers)
	case l.MaxMemory > 0:
		t.Memory, t.MaxBuffered = p.memory.of(l.MaxMemory), int(min(l.MaxMemory/2, maxBuffered))
	}
}

// memory is what the requests of all connections share, also after a reload.
type memory struct {
	limit  int64
	shared *transmission.Memory
}

// of returns the one of that limit. Connections from before a reload that changes it keep
// the earlier one.
func (m *memory) of(limit int64) *transmission.Memory {
	if m.shared == nil || m.limit != limit {
		m.limit, m.shared = limit, transmission.NewMemory(limit)
	}
	return m.shared
}
