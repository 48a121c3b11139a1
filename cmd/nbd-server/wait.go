package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"

	"nbd.example/nbd/block"
	"nbd.example/nbd/internal/control"
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
	members := slices.DeleteFunc(p.waits.Status(), func(s wait.Status) bool { return s.State == "merged" })
	if len(members) == 0 {
		p.log.Info("SIGUSR1: there is nothing to merge: no export that is open has waitfile, or all have merged")
		return
	}
	p.beginMerge(ctx, members)
}

// mergeFor merges on behalf of a request: the exports of these names, or all. It returns what
// there is to merge, or, at the end, what has become of it. A merge goes on when nobody waits for
// it any more.
func (p *program) mergeFor(ctx context.Context, toTheEnd bool, names ...string) ([]control.Merge, error) {
	members := p.waits.Status()
	if len(names) > 0 {
		members = slices.DeleteFunc(members, func(s wait.Status) bool { return !slices.Contains(names, s.Name) })
	}
	if len(members) == 0 {
		return []control.Merge{}, nil
	}
	ended := p.beginMerge(context.WithoutCancel(ctx), members, names...)
	if !toTheEnd {
		return mergesOf(members), nil
	}
	select {
	case err := <-ended:
		if err != nil {
			return nil, fmt.Errorf("merge: %w", err)
		}
	case <-ctx.Done():
		return nil, fmt.Errorf("the merge goes on: %w", context.Cause(ctx))
	}
	for i := range members {
		members[i].State, members[i].Waiting, members[i].Err = "merged", 0, nil
	}
	return mergesOf(members), nil
}

// beginMerge begins to merge members of those names, or all, and returns what tells the end.
func (p *program) beginMerge(ctx context.Context, members []wait.Status, names ...string) <-chan error {
	for _, s := range members {
		p.log.Info("merging", "export", s.Name, "state", s.State, "bytes", s.Waiting)
	}
	ended := make(chan error, 1)
	go func() {
		err := p.waits.Merge(ctx, names...)
		if err != nil {
			p.logLines(fmt.Errorf("merge: %w", err))
		} else {
			p.log.Info("merged", "exports", len(members))
		}
		ended <- err
	}()
	return ended
}

// merges tells how far the exports with waitfile are.
func (p *program) merges() []control.Merge { return mergesOf(p.waits.Status()) }

// mergesOf makes one of all devices of an export, which has several where its name has a %s.
func mergesOf(members []wait.Status) []control.Merge {
	list := []control.Merge{}
	for _, s := range members {
		at := slices.IndexFunc(list, func(m control.Merge) bool { return m.Export == s.Name })
		if at < 0 {
			at = len(list)
			list = append(list, control.Merge{Export: s.Name, State: s.State})
		}
		m := &list[at]
		m.Waiting += s.Waiting
		if m.State != "merging" && s.State != "merged" {
			m.State = s.State
		}
		if s.Err != nil && m.Error == "" {
			m.Error = s.Err.Error()
		}
	}
	return list
}
