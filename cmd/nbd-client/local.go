package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"sync"

	"nbd.example/nbd/block"
	"nbd.example/nbd/chain"
	"nbd.example/nbd/chain/core"
	"nbd.example/nbd/server"
	"nbd.example/nbd/supervise"
	"nbd.example/nbd/transmission"
)

// local is a server in this process: what --serve attaches. It has one export, the
// default one.
type local struct {
	s      *server.Server
	ctx    context.Context
	cancel context.CancelFunc
	conns  sync.WaitGroup
}

// registry is what chains are made of.
func (p *program) registry() *chain.Registry {
	r := core.Registry(core.Files{Open: p.env.open.OpenFile, Stat: p.env.open.Stat})
	r.Exists = func(path string) bool {
		info, err := p.env.open.Stat(path)
		return err == nil && !info.IsDir()
	}
	return r
}

// local opens a chain and serves it. It is what the supervisor calls.
func (p *program) local(_ context.Context, text string, readOnly bool) (supervise.Local, error) {
	spec, err := p.registry().Parse(text)
	if err != nil {
		return nil, err
	}
	s, err := server.New(server.Config{
		Logger: p.log, Transmission: p.localLimits(),
		Exports: []*server.Export{{
			ReadOnly: readOnly, Settings: text,
			Open: func(ctx context.Context, _ server.Client) (*block.Device, error) { return spec.Open(ctx) },
		}},
	})
	if err != nil {
		return nil, err
	}
	l := &local{s: s}
	l.ctx, l.cancel = context.WithCancel(context.Background())
	return l, nil
}

// localLimits bounds what requests take. Swap is written when memory is short: whatever is
// taken for it, beyond what the process has locked already, may not be there.
func (p *program) localLimits() transmission.Config {
	if !p.swap.Load() {
		return transmission.Config{}
	}
	return transmission.Config{MaxBuffered: 4 << 20, Memory: transmission.NewMemory(8 << 20), Workers: 8}
}

// Dial makes a socket pair and serves one end of it.
func (l *local) Dial(context.Context) (net.Conn, error) {
	if l.ctx.Err() != nil {
		return nil, fs.ErrClosed
	}
	ours, theirs, err := socketPair()
	if err != nil {
		return nil, fmt.Errorf("make a socket pair: %w", err)
	}
	l.conns.Go(func() {
		// How it ended the supervisor sees on its side.
		_ = l.s.ServeConn(l.ctx, ours)
	})
	return theirs, nil
}

// Close flushes and closes the device behind the server.
func (l *local) Close() error {
	l.cancel()
	ctx, cancel := context.WithTimeout(context.Background(), closeLimit)
	defer cancel()
	err := l.s.Shutdown(ctx)
	if errors.Is(err, context.DeadlineExceeded) {
		return err // its connections are still there
	}
	l.conns.Wait()
	return err
}
