package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"

	"nbd.example/nbd/block"
	"nbd.example/nbd/layer/wait"
)

// waiting opens an export that keeps its changes in a diff until SIGUSR1 comes. The
// source need not be there before that, and is not made.
func (o *opening) waiting(ctx context.Context, src source) (*block.Device, error) {
	base, err := o.openSource(ctx, src, false)
	size := o.x.FileSize
	switch {
	case err == nil && size == 0:
		size = base.Size()
	case errors.Is(err, fs.ErrNotExist) && size == 0:
		return nil, fmt.Errorf("%w; an export with waitfile needs filesize, the size in bytes, as long as its file is not there", err)
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return nil, err
	}
	open := o.p.env.open
	config := wait.Config{Diff: o.diff(src), Name: o.x.Name, Group: &o.p.waits, Open: open.OpenFile, Remove: open.Remove}
	w, err := wait.New(ctx, config, size, func(ctx context.Context) (*block.Device, error) {
		if d := base; d != nil {
			base = nil // handed over
			return d, nil
		}
		return o.openSource(ctx, src, false)
	})
	if err != nil {
		if base != nil {
			err = errors.Join(err, base.Close())
		}
		return nil, err
	}
	o.p.log.Info("changes are kept until SIGUSR1", "export", o.x.Name, "diff", config.Diff, "waiting", w.Status().Waiting)
	d, err := block.New(w)
	if err != nil {
		return nil, errors.Join(err, w.Close())
	}
	if w.Status().Interrupted {
		go o.p.resume(context.WithoutCancel(ctx), w, o.x.Name)
	}
	return d, nil
}

// resume goes on with a merge that was cut off when the server ended the last time. It
// was asked for then, and is not asked for again.
func (p *program) resume(ctx context.Context, w *wait.Wait, export string) {
	p.log.Warn("a merge was cut off when the server ended; it goes on", "export", export, "bytes", w.Status().Waiting)
	if err := w.Merge(ctx); err != nil {
		p.logLines(fmt.Errorf("merge: %w", err))
		return
	}
	p.log.Info("merged", "exports", 1)
}

// diff is the path of the file that keeps changes.
func (o *opening) diff(src source) string {
	if o.x.WaitFile != "true" {
		return o.p.env.open.Abs(o.x.WaitFile)
	}
	dir := o.x.COWDir
	if dir == "" {
		dir = filepath.Dir(src.path)
	}
	name := "nbd"
	if src.path != "" {
		name = filepath.Base(src.path)
	}
	return filepath.Join(o.p.env.open.Abs(dir), name+".wait")
}

// merge obeys SIGUSR1. It goes on while clients are served, and returns at once.
func (p *program) merge(ctx context.Context) {
	members := p.waits.Status()
	if len(members) == 0 {
		p.log.Info("SIGUSR1: there is nothing to merge: no export that is open has waitfile")
		return
	}
	for _, s := range members {
		p.log.Info("merging", "export", s.Name, "state", s.State, "bytes", s.Waiting)
	}
	go func() {
		if err := p.waits.Merge(ctx); err != nil {
			p.logLines(fmt.Errorf("merge: %w", err))
			return
		}
		p.log.Info("merged", "exports", len(members))
	}()
}
