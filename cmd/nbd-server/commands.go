package main

import (
	"context"
	"fmt"
	"os"
	"strings"

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

// startHelper starts the process that runs commands, if there is none and the
// configuration has some. Before privileges are given up it may be anybody.
func (p *program) startHelper(conf *nbdconf.Config) error {
	if p.helper != nil || !needsHelper(conf) {
		return nil
	}
	g := &conf.Generic
	c := hooks.Config{User: g.User, Group: g.Group}
	if g.RunUser != "" {
		c.User, c.Group, _ = strings.Cut(g.RunUser, ":")
	} else if os.Geteuid() != 0 {
		c = hooks.Config{} // who this process is, or has become
	}
	h, err := hooks.Start(c)
	if err != nil {
		pos, _ := g.Where("run_user")
		if g.RunUser == "" {
			pos, _ = g.Where("user")
		}
		if pos.File != "" {
			err = fmt.Errorf("%s: %w", pos, err)
		}
		return err
	}
	p.helper = h
	return nil
}

// stopHelper lets it end.
func (p *program) stopHelper() {
	if p.helper != nil {
		p.helper.Close()
	}
}

// file is the name of a client's file. Clients with the same one share a device.
func (o *opening) file(c server.Client) string {
	src, err := o.p.source(o.x, c.Addr)
	if err != nil {
		return "" // open will say so
	}
	return src.name()
}

// begin runs prerun for a client, and returns what runs postrun.
func (o *opening) begin(ctx context.Context, c server.Client) (end func(), err error) {
	file := o.file(c)
	addr := ""
	if c.Addr != nil {
		addr = c.Addr.String()
	}
	env := []string{"NBD_EXPORT=" + o.x.Name, "NBD_FILE=" + file, "NBD_CLIENT=" + addr}
	if o.x.PreRun != "" {
		if err := o.run(ctx, "prerun", nbdconf.Substitute(o.x.PreRun, file), env); err != nil {
			return nil, fmt.Errorf("prerun: %w", err)
		}
	}
	if o.x.PostRun == "" {
		return nil, nil
	}
	return func() {
		// Also when the server shuts down: it may clean up.
		if err := o.run(context.WithoutCancel(ctx), "postrun", nbdconf.Substitute(o.x.PostRun, file), env); err != nil {
			o.p.log.Warn("postrun: "+err.Error(), "export", o.x.Name, "client", addr)
		}
	}, nil
}

func (o *opening) run(ctx context.Context, key, text string, env []string) error {
	if o.p.helper == nil {
		return fmt.Errorf("%w: it was not started", hooks.ErrGone)
	}
	said, err := o.p.helper.Run(ctx, hooks.Command{Text: text, Env: env})
	if err == nil && said != "" {
		o.p.log.Info(key+" said", "export", o.x.Name, "text", said)
	}
	return err
}
