package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"nbd.example/nbd/internal/hooks"
	"nbd.example/nbd/internal/nbdconf"
	"nbd.example/nbd/server"
)

// needsHelper tells whether commands may have to be run.
func needsHelper(conf *nbdconf.Config) bool {
	for _, x := range conf.Exports {
		if x.PreRun != "" || x.PostRun != "" {
			return true
		}
	}
	return false
}

// runner has the process that runs commands, once the configuration has had some.
type runner struct {
	mu     sync.Mutex
	helper *hooks.Helper // nil if there is none now
	// again tells who a new one is to be, should this one end. Nil as long as there was none,
	// and when there is to be none any more.
	again func() (hooks.Config, nbdconf.Pos)
}

// startHelper starts the process that runs commands, if there was none yet and the
// configuration has some. Before privileges are given up it may be anybody.
func (p *program) startHelper(conf *nbdconf.Config) error {
	r := &p.runner
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.again != nil || !needsHelper(conf) {
		return nil
	}
	g := conf.Generic
	who := func() (hooks.Config, nbdconf.Pos) { return whoRuns(&g) }
	if err := p.newHelper(who); err != nil {
		return err
	}
	r.again = who
	return nil
}

// whoRuns tells who runs commands, and where the configuration says so.
func whoRuns(g *nbdconf.Generic) (hooks.Config, nbdconf.Pos) {
	pos, _ := g.Where("user")
	switch {
	case g.RunUser != "":
		pos, _ = g.Where("run_user")
		var c hooks.Config
		c.User, c.Group, _ = strings.Cut(g.RunUser, ":")
		return c, pos
	case os.Geteuid() != 0:
		return hooks.Config{}, pos // who this process is, or has become
	}
	return hooks.Config{User: g.User, Group: g.Group}, pos
}

// newHelper starts a helper. The caller holds the lock of p.runner.
func (p *program) newHelper(who func() (hooks.Config, nbdconf.Pos)) error {
	c, pos := who()
	h, err := hooks.Start(c)
	if err != nil {
		if pos.File != "" {
			err = fmt.Errorf("%s: %w", pos, err)
		}
		return err
	}
	p.runner.helper = h
	go p.missHelper(h)
	return nil
}

// missHelper waits for the end of a helper, and says so if nobody has asked for it.
func (p *program) missHelper(h *hooks.Helper) {
	<-h.Ended()
	r := &p.runner
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.again == nil {
		return
	}
	if r.helper == h {
		r.helper = nil
	}
	p.log.Error("the helper process that runs commands has ended; another one is started when a client of an export with prerun or postrun comes",
		"why", h.Why(), "pid", h.PID())
}

// helper returns the process that runs commands, a new one if the last one has ended.
func (p *program) helper() (*hooks.Helper, error) {
	r := &p.runner
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.helper != nil && !r.helper.Gone():
		return r.helper, nil
	case r.again == nil:
		return nil, hooks.ErrGone
	}
	if err := p.newHelper(r.again); err != nil {
		return nil, fmt.Errorf("%w, and there is no other until the server is restarted: %w", hooks.ErrGone, err)
	}
	p.log.Info("another helper process that runs commands was started", "pid", r.helper.PID())
	return r.helper, nil
}

// stopHelper lets it end, when it has run to their end, or to their limit, the commands that it
// was given.
func (p *program) stopHelper() {
	r := &p.runner
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.helper != nil {
		r.helper.Close()
	}
	r.helper, r.again = nil, nil
}

// file is the name of a client's file. Clients with the same one share a device.
func (o *opening) file(c server.Client) string {
	src, err := o.p.source(o.x, c.Addr)
	if err != nil {
		return "" // open will say so
	}
	return src.name()
}

// Limits of commands, if the configuration has no others.
const (
	prerunLimit  = 10 * time.Minute
	postrunLimit = time.Hour
)

// limit is that which the configuration gives in seconds.
func limit(seconds int, otherwise time.Duration) time.Duration {
	switch {
	case seconds < 0:
		return 0 // none
	case seconds == 0:
		return otherwise
	}
	return time.Duration(seconds) * time.Second
}

// postrunWait is how long a connection stays open for its postrun.
const postrunWait = 10 * time.Second

// begin runs prerun for a client, and returns what runs postrun.
func (o *opening) begin(ctx context.Context, c server.Client) (end func(), err error) {
	if _, err := o.p.helper(); err != nil { // so that there is nothing that cannot be cleaned up
		return nil, err
	}
	file := o.file(c)
	addr := ""
	if c.Addr != nil {
		addr = c.Addr.String()
	}
	cmd := hooks.Command{Env: []string{"NBD_EXPORT=" + o.x.Name, "NBD_FILE=" + file, "NBD_CLIENT=" + addr}}
	if o.x.PreRun != "" {
		if o.x.TransactionLog != "" {
			if err := o.p.renew(ctx, o.x); err != nil {
				return nil, err
			}
		}
		cmd.Text, cmd.Limit = nbdconf.Substitute(o.x.PreRun, file), limit(o.x.PreRunTimeout, prerunLimit)
		if err := o.run(ctx, "prerun", cmd); err != nil {
			return nil, fmt.Errorf("prerun: %w", err)
		}
	}
	if o.x.PostRun == "" {
		return nil, nil
	}
	cmd.Text, cmd.Limit = nbdconf.Substitute(o.x.PostRun, file), limit(o.x.PostRunTimeout, postrunLimit)
	return func() { o.finish(context.WithoutCancel(ctx), addr, cmd) }, nil
}

// finish runs postrun, also when the server shuts down: it may clean up. It returns when that
// has ended, or takes long: whoever waits for the connection to close may rely on the one,
// and must not be kept by the other.
func (o *opening) finish(ctx context.Context, client string, cmd hooks.Command) {
	log := o.p.log.With("export", o.x.Name, "client", client)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := o.run(ctx, "postrun", cmd); err != nil {
			log.Warn("postrun: " + err.Error())
		}
	}()
	select {
	case <-ended:
	case <-time.After(postrunWait):
		log.Info("postrun takes long, the connection does not wait for it")
	}
}

func (o *opening) run(ctx context.Context, key string, cmd hooks.Command) error {
	h, err := o.p.helper()
	if err != nil {
		return err
	}
	said, err := h.Run(ctx, cmd)
	if err == nil && said != "" {
		o.p.log.Info(key+" said", "export", o.x.Name, "text", said)
	}
	return err
}
