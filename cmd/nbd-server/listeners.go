package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"slices"
	"sync"
	"sync/atomic"

	"nbd.example/nbd/internal/nbdconf"
	"nbd.example/nbd/server"
)

// listener is one that is open.
type listener struct {
	net.Listener
	address             // what it was opened for; only oldstyle for one of the service manager
	retired atomic.Bool // it was closed because nobody wants it any more
}

// same tells whether two addresses are one, for clients of the same kind.
func (a *address) same(b *address) bool {
	if a.Address != b.Address || (a.oldstyle == nil) != (b.oldstyle == nil) {
		return false
	}
	return a.oldstyle == nil || *a.oldstyle == *b.oldstyle
}

// listeners are all that are open. Which they are can change while the server runs;
// connections are not touched by that.
type listeners struct {
	p      *program
	passed bool       // by the service manager: they stay what they are
	failed chan error // why one gives no more connections

	mu   sync.Mutex
	list []*listener
}

func (ls *listeners) all() []*listener {
	ls.mu.Lock()
	defer ls.mu.Unlock()
	return slices.Clone(ls.list)
}

// texts lists where the server listens.
func (ls *listeners) texts() []string { return addressTexts(ls.all()) }

func (ls *listeners) close() { closeAll(ls.all()) }

// serve serves the clients that come by list.
func (ls *listeners) serve(s *server.Server, list []*listener) {
	for _, l := range list {
		go func() {
			if err := ls.p.serveOn(s, l); err != nil && !l.retired.Load() {
				select {
				case ls.failed <- err:
				default: // the first of them ends the server
				}
			}
		}()
	}
}

// move is a change of where the server listens, ready to be made.
type move struct {
	ls              *listeners
	opened, retired []*listener
}

// errNeedsRestart is returned where only a server that is started anew can listen.
var errNeedsRestart = errors.New("needs a restart of the server")

// prepare opens what conf wants beside what is there. The move can always be made; if
// there is an error, it leaves all where they are.
func (ls *listeners) prepare(ctx context.Context, conf *nbdconf.Config) (*move, error) {
	m := &move{ls: ls}
	if ls.passed {
		ls.p.tellPassed(conf)
		return m, nil
	}
	now, wanted := ls.all(), ls.p.addresses(conf)
	for _, l := range now {
		if !slices.ContainsFunc(wanted, func(a address) bool { return a.same(&l.address) }) {
			m.retired = append(m.retired, l)
		}
	}
	for _, a := range wanted {
		if slices.ContainsFunc(now, func(l *listener) bool { return a.same(&l.address) }) {
			continue
		}
		opened, err := ls.p.open(ctx, a)
		m.opened = append(m.opened, opened...)
		if err != nil {
			m.undo()
			return &move{ls: ls}, a.wrap(m.explain(&a, err))
		}
	}
	return m, nil
}

// explain tells an address that cannot be opened now, but could be at the start, from
// one that cannot be opened at all.
func (m *move) explain(a *address, err error) error {
	for _, l := range m.retired { // a port is bound once, for one address or for all
		if addressInUse(err) && l.Network == a.Network && l.Port == a.Port {
			return fmt.Errorf("the server itself is in the way, on %s; that change %w: %w", l.text(), errNeedsRestart, err)
		}
	}
	if m.ls.p.dropped && errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("the server has given up the rights that it takes; that change %w: %w", errNeedsRestart, err)
	}
	return err
}

// undo closes what was opened.
func (m *move) undo() {
	closeAll(m.opened)
	m.opened = nil
}

// commit serves what was opened, and closes what is not wanted any more. Who is
// connected stays so.
func (m *move) commit(s *server.Server) {
	ls := m.ls
	if len(m.opened)+len(m.retired) == 0 {
		return
	}
	ls.mu.Lock()
	ls.list = slices.DeleteFunc(ls.list, func(l *listener) bool { return slices.Contains(m.retired, l) })
	ls.list = append(ls.list, m.opened...)
	ls.mu.Unlock()
	ls.serve(s, m.opened)
	for _, l := range m.opened {
		ls.p.log.Info("listening", "address", l.Addr().String())
	}
	for _, l := range m.retired {
		l.retired.Store(true)
		l.Close()
		ls.p.log.Info("listening no longer", "address", l.Addr().String())
	}
}
