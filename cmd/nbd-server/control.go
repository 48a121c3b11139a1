package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"nbd.example/nbd/internal/control"
	"nbd.example/nbd/internal/nbdconf"
	"nbd.example/nbd/server"
)

// runTime stands for the configuration file where an export was added or changed by
// the control socket.
const runTime = "run time"

// remote is what the control socket reaches: the server, and its configuration.
type remote struct {
	p         *program
	s         *server.Server
	since     time.Time
	listeners *listeners
	last      atomic.Pointer[control.Reload] // nil if there was none
	files     atomic.Pointer[[]string]       // of the configuration

	// mu is held while the configuration changes, but not while anybody waits for
	// clients.
	mu sync.Mutex
	// conf is what is wanted: in force, or as soon as the clients have left. It is never
	// changed, but replaced.
	conf *nbdconf.Config
	// busy is since when mu has been held for a change; nil while it is not.
	busy atomic.Pointer[time.Time]
}

var _ control.Handler = (*remote)(nil)

func newRemote(p *program, s *server.Server, listeners *listeners, conf *nbdconf.Config) *remote {
	r := &remote{p: p, s: s, since: time.Now(), listeners: listeners, conf: conf}
	r.files.Store(&conf.Files)
	return r
}

// begin begins a change of the configuration, one at a time, and returns what ends it.
func (r *remote) begin() (end func()) {
	r.mu.Lock()
	now := time.Now()
	r.busy.Store(&now)
	return func() {
		r.busy.Store(nil)
		r.mu.Unlock()
	}
}

// listenControl opens the control socket, if there is to be one. One that the
// service manager has passed was found by inherited.
func (p *program) listenControl(ctx context.Context, g *nbdconf.Generic) (net.Listener, error) {
	path := cmp.Or(p.flags.Control, g.Control)
	switch {
	case p.control != nil:
		if path != "" {
			p.log.Warn("the control socket " + path + " is not made: the service manager has passed one")
		}
		return p.control, nil
	case path == "":
		return nil, nil
	}
	return control.Listen(ctx, p.env.open.Abs(path))
}

// attendControl serves the control socket, and returns what ends that.
func (p *program) attendControl(ctx context.Context, l net.Listener, r *remote) (end func()) {
	if l == nil {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	p.log.Info("control socket", "path", l.Addr().String())
	go func() {
		defer close(done)
		if err := control.Serve(ctx, l, r, p.log); err != nil {
			p.log.Error(err.Error()) // clients are served on
		}
	}()
	return func() {
		cancel()
		p.ended("a request on the control socket", done)
	}
}

// reload reads the configuration again.
func (r *remote) reload() (server.Report, error) {
	defer r.begin()()
	r.reconcile()
	conf, report, err := r.p.reload(r.s, r.listeners, r.conf)
	r.conf = conf
	r.files.Store(&conf.Files)
	last := &control.Reload{At: time.Now()}
	if err != nil {
		last.Error = withProblems(err).Error()
	}
	r.last.Store(last)
	return report, err
}

// config returns the configuration.
func (r *remote) config() *nbdconf.Config {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.reconcile()
	return r.conf
}

// reconcile takes changes back that could not be made when the clients had left. The
// caller holds r.mu.
func (r *remote) reconcile() {
	for _, e := range r.s.Exports() {
		x, ok := e.Export.Origin.(*nbdconf.Export)
		at := find(r.conf, e.Export.Name)
		switch e.State {
		case "pending", "moving", "removed":
			continue
		}
		if ok && at >= 0 && r.conf.Exports[at] != x {
			next := *r.conf
			next.Exports = slices.Clone(r.conf.Exports)
			next.Exports[at] = x
			r.conf = &next
		}
	}
}

// Status describes the server. It waits for nothing, so that it tells also of a server that
// is stuck with a change.
func (r *remote) Status(context.Context) (control.Status, error) {
	return control.Status{
		Program: "nbd-server " + versionText(), PID: os.Getpid(), Since: r.since, Config: append([]string{}, *r.files.Load()...), Busy: r.busy.Load(),
		Exports: len(r.s.Exports()), Connections: len(r.s.Connections()),
		Listening: r.listeners.texts(), Reload: r.last.Load(), TransactionLogs: r.p.records.describe(),
	}, nil
}

// Exports describes the exports.
func (r *remote) Exports(context.Context) ([]control.Export, error) {
	list := []control.Export{}
	merges := r.p.merges()
	for _, e := range r.s.Exports() {
		x := control.Export{
			Name: e.Export.Name, State: e.State, Clients: e.Clients, Size: e.Size, ReadOnly: e.Export.ReadOnly,
			TLS: e.Export.RequireTLS, MaxConnections: e.Export.MaxConnections, FlushFailures: e.Failures,
		}
		if from, ok := e.Export.Origin.(*nbdconf.Export); ok && e.State != "removed" {
			x.Source, x.Origin = from.ExportName, from.Pos.String()
		}
		if at := slices.IndexFunc(merges, func(m control.Merge) bool { return m.Export == x.Name }); at >= 0 {
			x.Merge = &merges[at]
		}
		list = append(list, x)
	}
	return list, nil
}

// Section returns what an export was configured by.
func (r *remote) Section(_ context.Context, name string) (control.Section, error) {
	conf := r.config()
	at := find(conf, name)
	if at < 0 {
		return control.Section{}, coded(fmt.Errorf("%w: %q", server.ErrNoExport, name))
	}
	x := conf.Exports[at]
	section := control.Section{Name: name, Origin: x.Pos.String(), Keys: x.Values()}
	for _, e := range r.s.Exports() {
		if e.Export.Name == name {
			section.State = e.State
		}
	}
	return section, nil
}

// find returns where in conf an export is, or -1.
func find(conf *nbdconf.Config, name string) int {
	return slices.IndexFunc(conf.Exports, func(x *nbdconf.Export) bool { return x.Name == name })
}

// Connections describes the connections.
func (r *remote) Connections(context.Context) ([]control.Connection, error) {
	list := []control.Connection{}
	for _, c := range r.s.Connections() {
		x := control.Connection{
			ID: c.ID, Client: c.Client, Export: c.Export, Phase: "transmission", Since: c.Since, TLS: c.TLS, TLSPeer: c.TLSPeer,
			Replies: c.Replies, Requests: c.Stats.Requests, Errors: c.Stats.Errors,
			Read: c.Stats.BytesRead, Written: c.Stats.BytesWritten, InFlight: c.InFlight,
		}
		switch {
		case c.Handshake:
			x.Phase = "handshake"
		case c.Closing:
			x.Phase = "closing"
		}
		if p := c.Process; p != nil {
			x.Process = &control.Process{PID: p.PID, UID: p.UID, GID: p.GID}
		}
		list = append(list, x)
	}
	return list, nil
}

// CloseConnection ends a connection.
func (r *remote) CloseConnection(_ context.Context, id uint64, how control.Clients) error {
	return coded(r.s.CloseConnection(id, endBy(how)))
}

func endBy(how control.Clients) server.How {
	if how == control.Cut {
		return server.Cut
	}
	return server.Drain
}

// coded gives an error of the server the code of the protocol.
func coded(err error) error {
	switch {
	case errors.Is(err, server.ErrNoConnection), errors.Is(err, server.ErrNoExport):
		return &control.Error{Code: control.NotFound, Text: err.Error()}
	case errors.Is(err, server.ErrExportExists):
		return &control.Error{Code: control.Exists, Text: err.Error()}
	}
	return err
}

// changes translates a report.
func changes(r server.Report) control.Changes {
	return control.Changes{Added: r.Added, Removed: r.Removed, Changed: r.Changed, Pending: r.Pending, Healed: r.Healed, Kept: r.Kept}
}

// AddExport serves one more export.
func (r *remote) AddExport(_ context.Context, name string, keys map[string]string) (control.Changes, error) {
	defer r.begin()()
	if find(r.conf, name) >= 0 {
		return control.Changes{}, coded(fmt.Errorf("%w: %q", server.ErrExportExists, name))
	}
	if err := r.antique(keys); err != nil {
		return control.Changes{}, err
	}
	report, err := r.put(name, keys, len(r.conf.Exports), r.s.AddExport)
	return changes(report), err
}

// ChangeExport gives an export other settings.
func (r *remote) ChangeExport(ctx context.Context, name string, keys map[string]string, how control.Clients) (control.Changes, error) {
	report, err := r.change(name, keys)
	if err == nil {
		err = r.evict(ctx, name, how)
	}
	return changes(report), err
}

func (r *remote) change(name string, keys map[string]string) (server.Report, error) {
	defer r.begin()()
	r.reconcile()
	at := find(r.conf, name)
	if at < 0 {
		return server.Report{}, coded(fmt.Errorf("%w: %q", server.ErrNoExport, name))
	}
	if err := r.antique(keys); err != nil {
		return server.Report{}, err
	}
	all := r.conf.Exports[at].Values()
	maps.Copy(all, keys)
	for k, v := range keys {
		if v == "" {
			delete(all, k)
		}
	}
	return r.put(name, all, at, r.s.ChangeExport)
}

// antique refuses a port that would not be listened on. In a file, where old ones have it,
// that is passed over; but here somebody has just typed it.
func (r *remote) antique(keys map[string]string) error {
	if keys["port"] == "" || r.conf.Generic.OldStyle {
		return nil
	}
	return &control.Error{Code: control.BadRequest, Text: "port is for antique clients, and has no effect without oldstyle = true in [generic] of the configuration"}
}

// put gives an export at a place of the configuration these keys, by do. The
// caller holds r.mu.
func (r *remote) put(name string, keys map[string]string, at int, do func(*server.Export) (server.Report, error)) (server.Report, error) {
	x, problems := r.conf.NewExport(name, keys, runTime)
	// Here a key that is not known is an error: somebody has just typed it.
	if bad := problems.Errors(nbdconf.Unknown); len(bad) > 0 {
		return server.Report{}, &control.Error{Code: control.BadRequest, Text: bad.Error()}
	}
	r.p.logProblems(problems, nbdconf.Unknown)
	next := *r.conf
	next.Exports = slices.Clone(r.conf.Exports)
	if at == len(next.Exports) {
		next.Exports = append(next.Exports, nil)
	}
	next.Exports[at] = x
	if err := r.p.startHelper(&next); err != nil {
		return server.Report{}, err
	}
	e, err := r.p.export(x)
	if err != nil {
		return server.Report{}, err
	}
	m, err := r.listeners.prepare(context.Background(), &next)
	if err != nil {
		return server.Report{}, err
	}
	report, err := do(e)
	if err != nil {
		m.undo()
		return report, coded(err)
	}
	m.commit(r.s)
	r.conf = &next
	r.p.retire(r.s, r.conf)
	return report, nil
}

// RemoveExport serves an export no longer.
func (r *remote) RemoveExport(ctx context.Context, name string, how control.Clients) (control.Changes, error) {
	report, err := r.remove(name)
	if err == nil {
		err = r.evict(ctx, name, how)
	}
	return changes(report), err
}

func (r *remote) remove(name string) (server.Report, error) {
	defer r.begin()()
	report, err := r.s.RemoveExport(name)
	if err != nil {
		return report, coded(err)
	}
	if at := find(r.conf, name); at >= 0 {
		next := *r.conf
		next.Exports = slices.Delete(slices.Clone(r.conf.Exports), at, at+1)
		r.conf = &next
		r.p.retire(r.s, r.conf)
		m, err := r.listeners.prepare(context.Background(), r.conf)
		if err != nil {
			r.p.log.Warn("where the server listens stays as it was", "why", err)
		}
		m.commit(r.s)
	}
	return report, nil
}

// evict ends the connections of an export, unless they may stay.
func (r *remote) evict(ctx context.Context, name string, how control.Clients) error {
	if how == control.Stay {
		return nil
	}
	return r.s.Evict(ctx, name, endBy(how))
}

// Reload reads the configuration again.
func (r *remote) Reload(context.Context) (control.Changes, error) {
	before := r.listeners.texts()
	report, err := r.reload()
	c := changes(report)
	if now := r.listeners.texts(); !slices.Equal(now, before) {
		c.Listening = now
	}
	return c, withProblems(err)
}

// withProblems adds what is wrong with a configuration to the error that it cannot be used.
func withProblems(err error) error {
	var bad *badConfig
	if errors.As(err, &bad) {
		return fmt.Errorf("%w:\n%w", err, bad.problems)
	}
	return err
}

// ReloadCerts reads keys and certificates again.
func (r *remote) ReloadCerts(context.Context) error {
	defer r.begin()()
	mode, t, err := r.p.tlsConfig(&r.conf.Generic)
	if err != nil {
		return err
	}
	if mode == server.NoTLS {
		return errors.New("there are no certificates: the configuration has no keyfile")
	}
	return r.s.SetTLS(mode, t)
}

// Merge merges what an export with waitfile has collected.
func (r *remote) Merge(ctx context.Context, name string, wait bool) ([]control.Merge, error) {
	if find(r.config(), name) < 0 {
		return nil, coded(fmt.Errorf("%w: %q", server.ErrNoExport, name))
	}
	list, err := r.p.mergeFor(ctx, wait, name)
	if err == nil && len(list) == 0 {
		err = fmt.Errorf("the export %q has nothing to merge: it has no waitfile, or is not open", name)
	}
	return list, err
}

// MergeAll merges what all exports with waitfile have collected.
func (r *remote) MergeAll(ctx context.Context, wait bool) ([]control.Merge, error) {
	return r.p.mergeFor(ctx, wait)
}
