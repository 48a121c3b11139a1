package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"strings"
	"time"

	"nbd.example/nbd/internal/daemon"
	"nbd.example/nbd/internal/nbdconf"
	"nbd.example/nbd/internal/serverflags"
	"nbd.example/nbd/server"
)

// drainTime bounds the wait for connections to end after the first SIGTERM.
const drainTime = 30 * time.Second

// serve is the server from start to end.
func (p *program) serve(ctx context.Context, child *daemon.Child) int {
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, append(endSignals, hangup, mergeSignal)...)
	defer p.stopHelper()
	defer func() { p.keys.Close() }()
	defer p.closeRecords(nil)
	defer signal.Stop(signals)
	p.env.service.forward(signals)
	ignoreSignals()
	p.idleOptions()

	conf, problems, err := p.load()
	if p.logProblems(problems, nbdconf.Error) || err != nil {
		if err != nil {
			p.log.Error(err.Error())
		}
		return exitError
	}
	if p.flags.Inetd {
		return p.inetd(ctx, conf, signals)
	}
	listeners, err := p.listen(ctx, conf)
	if err != nil {
		p.log.Error(err.Error())
		return exitError
	}
	ctl, err := p.listenControl(ctx, &conf.Generic)
	if ctl != nil {
		defer ctl.Close()
	}
	if err != nil {
		listeners.close()
		p.log.Error(err.Error())
		return exitError
	}
	removePID, err := p.writePID(child)
	if err != nil {
		listeners.close()
		p.log.Error(err.Error())
		return exitError
	}
	defer removePID()
	s, err := p.start(conf)
	if err != nil {
		listeners.close()
		p.logLines(err)
		return exitError
	}
	r := newRemote(p, s, listeners, conf)
	listeners.serve(s, listeners.all())
	defer p.attendControl(ctx, ctl, r)()
	return p.attend(ctx, r, child, signals)
}

// start reads keys, gives up privileges, and opens the exports.
func (p *program) start(conf *nbdconf.Config) (*server.Server, error) {
	mode, tlsConfig, err := p.tlsConfig(&conf.Generic)
	if err != nil {
		return nil, err
	}
	if err := p.startHelper(conf); err != nil {
		return nil, err
	}
	if err := p.startKeyReader(&conf.Generic); err != nil {
		return nil, err
	}
	if err := p.prepareForSwap(&conf.Generic); err != nil {
		return nil, err
	}
	if err := p.dropPrivileges(&conf.Generic); err != nil {
		return nil, err
	}
	exports, err := p.exports(conf)
	if err != nil {
		return nil, err
	}
	return server.New(p.serverConfig(conf, exports, mode, tlsConfig))
}

// dropPrivileges becomes the user and the group of the configuration.
func (p *program) dropPrivileges(g *nbdconf.Generic) error {
	changed, err := daemon.Drop(g.User, g.Group)
	if err != nil {
		pos, _ := g.Where("user")
		return fmt.Errorf("%s: %w", pos, err)
	}
	p.dropped = changed
	if !changed && (g.User != "" || g.Group != "") {
		p.log.Info("user and group stay as they are: only root can change them", "user", g.User, "group", g.Group)
	}
	return nil
}

// writePID writes the pid file, if one is wanted, and returns what removes it. In the
// background there is one in any case, as init scripts know it from the reference; but
// nothing fails for want of one that nobody has asked for.
func (p *program) writePID(child *daemon.Child) (remove func(), err error) {
	name, asked := p.flags.PIDFile, p.flags.PIDFile != ""
	if !asked {
		if child == nil || os.Geteuid() != 0 {
			return func() {}, nil
		}
		name = serverflags.DefaultPID
	}
	f, err := daemon.WritePID(p.env.open.Abs(name))
	switch {
	case err != nil && asked:
		return nil, err
	case err != nil:
		p.log.Warn("there is no pid file", "why", err)
		return func() {}, nil
	}
	return func() {
		if err := f(); err != nil && asked {
			p.log.Warn("cannot remove the pid file", "error", err)
		}
	}, nil
}

// attend serves until a signal, or a failure, ends the server.
func (p *program) attend(ctx context.Context, r *remote, child *daemon.Child, signals <-chan os.Signal) int {
	s, exports := r.s, len(r.config().Exports)
	if child != nil && !p.logs.ToSyslog() {
		p.log.Warn("there is no syslog here: in the background nothing will be logged; -n stays in the foreground")
	}
	p.logs.Started()
	p.log.Info("serving", "exports", exports, "listening", strings.Join(r.listeners.texts(), " "), "pid", os.Getpid())
	p.logs.Flush() // before standard error leads nowhere
	status := exitOK
	if err := child.Ready(); err != nil {
		p.log.Error(err.Error())
		status = exitError
	}
	p.notify(readyText(exports))
	reload, stop := r.reloads()
	defer stop()
	for status == exitOK {
		select {
		case <-ctx.Done():
			return p.end(s, signals, context.Cause(ctx).Error())
		case err := <-r.listeners.failed:
			p.log.Error(err.Error())
			status = exitError
		case sig := <-signals:
			switch sig {
			case hangup:
				reload()
			case mergeSignal:
				p.merge(ctx)
			default:
				return p.end(s, signals, sig.String())
			}
		}
	}
	p.end(s, signals, "an error")
	return status
}

// serveOn serves the clients of one listener.
func (p *program) serveOn(s *server.Server, l *listener) error {
	if l.oldstyle != nil {
		return s.ServeOldstyle(l.Listener, *l.oldstyle)
	}
	return s.Serve(l.Listener)
}

// end drains the server. A second signal cuts what is left, and a third one does not
// wait for disks either, which may never answer.
func (p *program) end(s *server.Server, signals <-chan os.Signal, why string) int {
	p.log.Info("shutting down", "why", why)
	p.notify("STOPPING=1")
	ctx, cancel := context.WithTimeoutCause(context.Background(), drainTime, fmt.Errorf("not done after %v", drainTime))
	defer cancel()
	ctx, cut := context.WithCancelCause(ctx)
	defer cut(nil)
	done := make(chan error, 1)
	go func() { done <- s.Shutdown(ctx) }()
	for {
		select {
		case err := <-done:
			if err != nil {
				p.logLines(err)
				return exitError
			}
			return exitOK
		case sig := <-signals:
			switch {
			case sig == hangup || sig == mergeSignal:
			case ctx.Err() == nil:
				cut(errors.New("a second signal"))
			default:
				p.log.Error("ending at once: one more signal came while disks were waited for; what was not flushed may be lost")
				return exitError
			}
		}
	}
}

// inetd serves the one client on standard input.
func (p *program) inetd(ctx context.Context, conf *nbdconf.Config, signals <-chan os.Signal) int {
	conn, err := stdinConn(p.env.stdin)
	if err != nil {
		p.log.Error(err.Error())
		return exitError
	}
	if path := cmp.Or(p.flags.Control, conf.Generic.Control); path != "" {
		p.log.Warn("the control socket " + path + " is not made: with port 0 there is one client, and the server ends with it")
	}
	removePID, err := p.writePID(nil)
	if err != nil {
		p.log.Error(err.Error())
		return exitError
	}
	defer removePID()
	s, err := p.start(conf)
	if err != nil {
		conn.Close()
		p.logLines(err)
		return exitError
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		for sig := range signals {
			switch sig {
			case hangup:
			case mergeSignal:
				p.merge(ctx)
			default:
				cancel()
			}
		}
	}()
	p.logs.Started()
	status := exitOK
	serve := s.ServeConn
	if p.flags.OldStyle && p.flags.File != "" {
		serve = func(ctx context.Context, c net.Conn) error { return s.ServeOldstyleConn(ctx, c, "") }
	}
	if err := serve(ctx, conn); err != nil {
		p.log.Info("the client's connection ended", "why", err)
	}
	if err := s.Shutdown(ctx); err != nil {
		p.logLines(err)
		status = exitError
	}
	return status
}
