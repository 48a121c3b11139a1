package main

import (
	"crypto/tls"
	"fmt"
	"slices"
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
func (p *program) reload(s *server.Server, old *nbdconf.Config) (*nbdconf.Config, server.Report, error) {
	p.notify("RELOADING=1")
	defer p.notify("READY=1")
	p.rotate()
	conf, report, err := p.tryReload(s)
	if err != nil {
		p.logLines(err)
		p.log.Error("the configuration was not taken over; the earlier one stays in force")
		return old, report, err
	}
	p.retire(s, conf)
	p.tellFixed(old, conf)
	// What is fixed stays as it was.
	g := old.Generic
	g.AllowList, g.ForceTLS, g.TLSOnly, g.MaxThreads = conf.Generic.AllowList, conf.Generic.ForceTLS, conf.Generic.TLSOnly, conf.Generic.MaxThreads
	g.Limits = conf.Generic.Limits
	g.KeyFile, g.CertFile, g.CACertFile, g.TLSPrio = conf.Generic.KeyFile, conf.Generic.CertFile, conf.Generic.CACertFile, conf.Generic.TLSPrio
	conf.Generic = g
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

func (p *program) tryReload(s *server.Server) (conf *nbdconf.Config, report server.Report, err error) {
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
	report, err = s.Reload(p.serverConfig(conf, exports, mode, t))
	if err != nil {
		return nil, report, err
	}
	p.log.Info("configuration taken over", reportAttrs(report)...)
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

// tellFixed says which changes need a restart.
func (p *program) tellFixed(before, now *nbdconf.Config) {
	old, g := &before.Generic, &now.Generic
	for _, k := range []struct {
		name string
		same bool
	}{
		{"port", old.Port == g.Port}, {"listenaddr", slices.Equal(old.ListenAddr, g.ListenAddr)},
		{"listen", slices.Equal(old.Listen, g.Listen)}, {"the ports of oldstyle", slices.EqualFunc(antiques(before), antiques(now), sameAddress)},
		{"unixsock", old.UnixSock == g.UnixSock}, {"duallisten", old.DualListen == g.DualListen},
		{"user", old.User == g.User}, {"group", old.Group == g.Group},
		{"run_user", old.RunUser == g.RunUser}, {"control", old.Control == g.Control},
		{"swap", old.Swap == g.Swap},
	} {
		if !k.same {
			p.log.Warn("a change of " + k.name + " needs a restart of the server")
		}
	}
}

func sameAddress(a, b address) bool { return a.Address == b.Address && *a.oldstyle == *b.oldstyle }
