package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"strings"
	"time"

	"nbd.example/nbd/internal/nbdconf"
	"nbd.example/nbd/server"
)

// serverConfig is what the server is told of a configuration.
func (p *program) serverConfig(conf *nbdconf.Config, exports []*server.Export, mode server.TLSMode, t *tls.Config) server.Config {
	c := server.Config{
		Exports: exports, TLSMode: mode, TLS: t, AllowList: conf.Generic.AllowList,
		Logger: p.log,
	}
	p.bound(&c, &conf.Generic)
	return c
}

// reload takes over the configuration as it is now, or nothing of it. It returns
// the one that is in force. Transaction logs are opened anew in any case.
func (p *program) reload(s *server.Server, ls *listeners, old *nbdconf.Config) (*nbdconf.Config, server.Report, error) {
	p.notify("RELOADING=1")
	defer p.notify("READY=1")
	p.rotate()
	conf, report, err := p.tryReload(s, ls)
	if err != nil {
		p.logLines(err)
		p.log.Error("the configuration was not taken over; the earlier one stays in force")
		return old, report, err
	}
	p.retire(s, conf)
	p.keepFixed(&old.Generic, &conf.Generic)
	return conf, report, nil
}

// endPatience bounds the wait, when the server has ended, for what still looks at
// its files: a file system that does not answer must not keep the process.
const endPatience = 5 * time.Second

// ended waits for the end of something, not for ever.
func (p *program) ended(what string, done <-chan struct{}) {
	t := time.NewTimer(endPatience)
	defer t.Stop()
	select {
	case <-done:
	case <-t.C:
		p.log.Warn(what + " does not end: a file or device does not answer; it is not waited for")
	}
}

// reloads returns what asks for a reload, and does not wait for it, so that signals
// are obeyed meanwhile; and what ends that.
func (r *remote) reloads() (ask, stop func()) {
	asked, done := make(chan struct{}, 1), make(chan struct{})
	go func() {
		defer close(done)
		for range asked {
			r.reload()
		}
	}()
	ask = func() {
		select {
		case asked <- struct{}{}:
		default: // one that has not begun will see all that there is
		}
	}
	return ask, func() {
		select {
		case <-asked:
		default:
		}
		close(asked)
		r.p.ended("the reload", done)
	}
}

// badConfig is returned for a configuration whose errors are logged already.
type badConfig struct {
	file     string
	problems nbdconf.Problems
}

func (e *badConfig) Error() string { return "reload: " + e.file + " has errors" }

func (p *program) tryReload(s *server.Server, ls *listeners) (conf *nbdconf.Config, report server.Report, err error) {
	conf, problems, err := p.load()
	if p.logProblems(problems, nbdconf.Error) {
		return nil, report, &badConfig{conf.Files[0], problems.Errors(nbdconf.Error)}
	}
	if err != nil {
		return nil, report, fmt.Errorf("reload: %w", err)
	}
	mode, t, err := p.tlsConfig(&conf.Generic)
	if err != nil {
		return nil, report, err
	}
	if err := p.startHelper(conf); err != nil {
		return nil, report, err
	}
	exports, err := p.exports(conf)
	if err != nil {
		return nil, report, err
	}
	m, err := ls.prepare(context.Background(), conf)
	if errors.Is(err, errNeedsRestart) {
		p.log.Warn("where the server listens stays as it was", "why", err)
	} else if err != nil {
		return nil, report, err
	}
	report, err = s.Reload(p.serverConfig(conf, exports, mode, t))
	if err != nil {
		m.undo()
		return nil, report, err
	}
	p.log.Info("configuration taken over", reportAttrs(report)...)
	m.commit(s)
	return conf, report, nil
}

// reportAttrs lists what a reload has changed.
func reportAttrs(r server.Report) (attrs []any) {
	for _, part := range []struct {
		name string
		list []string
	}{
		{"added", r.Added}, {"removed", r.Removed}, {"changed", r.Changed},
		{"pending", r.Pending}, {"healed", r.Healed},
	} {
		if len(part.list) > 0 {
			names := make([]string, len(part.list))
			for i, n := range part.list {
				names[i] = fmt.Sprintf("%q", n)
			}
			attrs = append(attrs, part.name, strings.Join(names, ","))
		}
	}
	return append(attrs, "kept", len(r.Kept))
}

// keepFixed says which changes need a restart, and takes them back.
func (p *program) keepFixed(old, g *nbdconf.Generic) {
	for _, k := range []struct {
		name string
		same bool
	}{
		{"user", old.User == g.User}, {"group", old.Group == g.Group},
		{"run_user", old.RunUser == g.RunUser}, {"control", old.Control == g.Control},
		{"swap", old.Swap == g.Swap},
	} {
		if !k.same {
			p.log.Warn("a change of " + k.name + " needs a restart of the server")
		}
	}
	g.User, g.Group, g.RunUser, g.Control, g.Swap = old.User, old.Group, old.RunUser, old.Control, old.Swap
}
