package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"nbd.example/nbd/block"
	"nbd.example/nbd/chain"
	"nbd.example/nbd/chain/core"
	"nbd.example/nbd/internal/nbdconf"
	"nbd.example/nbd/proto"
	"nbd.example/nbd/server"
)

// source is what an export is made of: a file, or a chain.
type source struct {
	path string      // of the file, or of a chain's files; "" if it has none
	spec *chain.Spec // nil for a file
}

// text is what to write in a configuration for it.
func (s source) text() string {
	if s.spec != nil {
		return s.spec.String()
	}
	return s.path
}

// name is what is told to commands: the file, if there is one.
func (s source) name() string { return cmp.Or(s.path, s.text()) }

// registry has the elements of chains, which open files through the program.
func (p *program) registry() *chain.Registry {
	open := p.env.open
	r := core.Registry(core.Files{
		Open: open.OpenFile, Stat: open.Stat, Remove: open.Remove, Waits: &p.waits,
		CreateTemp: func(dir, pattern string) (*os.File, error) {
			return nameless(open, cmp.Or(dir, os.TempDir()), pattern)
		},
	})
	r.Exists = p.exists
	return r
}

func (p *program) exists(path string) bool {
	info, err := p.env.open.Stat(path)
	return err == nil && !info.IsDir()
}

// source finds out what an exportname means, for a client at addr.
func (p *program) source(x *nbdconf.Export, addr net.Addr) (source, error) {
	name, style := x.ExportName, x.Virtual()
	expand := func(s string) string { return style.Expand(s, addr) }
	// Old configurations know of no chains: what could be a path is one, unless
	// it has a separator of chains and there is no such file.
	plain := filepath.IsAbs(name) && !strings.Contains(name, " | ") && !strings.Contains(name, "::")
	switch path := p.env.open.Abs(expand(name)); {
	case x.TreeFiles:
		return p.files("tree", path, map[string]string{"size": strconv.FormatInt(x.FileSize, 10)})
	case x.MultiFile:
		return p.files("multi", path, nil)
	case plain || x.Temporary || p.exists(expand(name)):
		return source{path: path}, nil
	}
	r := p.registry()
	spec, err := r.Parse(name)
	if err != nil {
		return source{}, err
	}
	if path, ok := pathOf(spec); ok && expand(path) != path {
		if spec, err = spec.Set(map[string]string{"path": expand(path)}); err != nil {
			return source{}, err
		}
	}
	spec = spec.Absolute(p.env.open.Abs("."))
	path, _ := pathOf(spec)
	if path != "" && spec.String() == mustFile(r, path) {
		return source{path: path}, nil
	}
	return source{path: path, spec: spec}, nil
}

// pathOf returns where a chain has its files, if it has any.
func pathOf(s *chain.Spec) (string, bool) {
	switch name, args := s.Backend(); name {
	case chain.FileElement, "multi", "tree":
		return args.Text("path"), true
	}
	return "", false
}

// files is a source of several files, opened by a back end of that name.
func (p *program) files(backend, path string, params map[string]string) (source, error) {
	all := map[string]string{"path": path}
	maps.Copy(all, params)
	spec, err := p.registry().New(backend, all)
	return source{path: path, spec: spec}, err
}

// mustFile is the canonical text of a file without anything else.
func mustFile(r *chain.Registry, path string) string {
	s, err := r.File(path)
	if err != nil {
		return ""
	}
	return s.String()
}

// exports turns the sections of a configuration into exports of a server. It
// opens nothing but lists of addresses, and returns all errors.
func (p *program) exports(conf *nbdconf.Config) ([]*server.Export, error) {
	var list []*server.Export
	var errs []error
	for _, x := range conf.Exports {
		e, err := p.export(x)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		list = append(list, e)
	}
	return list, errors.Join(errs...)
}

func (p *program) export(x *nbdconf.Export) (*server.Export, error) {
	src, err := p.source(x, nil)
	if err == nil && src.spec != nil {
		_, err = refine(src.spec, x)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: exportname: %w", x.Where("exportname"), err)
	}
	p.warnOfCache(x, src)
	list, err := p.newAccess(x)
	if err != nil {
		return nil, err
	}
	tap, err := p.tap(x)
	if err != nil {
		return nil, err
	}
	o := &opening{p: p, x: x}
	e := &server.Export{
		Name: x.Name, Description: x.Description, MinBlock: uint32(x.MinBlock), Origin: x, Open: o.open, Settings: o.settings(src), ReadOnly: x.ReadOnly, Rotational: x.Rotational, Hide: hidden(x),
		Tap: tap, MaxConnections: x.MaxConnections, IdleTimeout: time.Duration(x.Timeout) * time.Second, RequireTLS: x.DemandsTLS(),
	}
	if list != nil {
		e.Allow, e.AllowNow = list.rules, list.now
	}
	virtual, commands := x.Virtual().Expands(x.ExportName), x.PreRun != "" || x.PostRun != ""
	switch {
	case x.CopyOnWrite && !x.ReadOnly || x.Temporary:
		e.Private, e.Probe = true, !virtual && !commands // which may bring the file
	case virtual || commands:
		e.Private, e.Share = true, o.file
	}
	if commands {
		e.Begin, e.BeginSettings = o.begin, fmt.Sprint(x.PreRunTimeout, x.PostRunTimeout)
	}
	return e, nil
}

// refine applies the keys of an export to a chain.
func refine(s *chain.Spec, x *nbdconf.Export) (*chain.Spec, error) {
	_, file := pathOf(s)
	var err error
	if x.FileSize > 0 && !x.TreeFiles { // of which the size is a parameter
		s, err = s.With("truncate", map[string]string{"size": fmt.Sprint(x.FileSize)})
	}
	if x.Sync && err == nil {
		if !file {
			return s, errors.New("sync is for files, and this chain has none")
		}
		s, err = s.Set(map[string]string{"sync": "true"})
	}
	if file && err == nil && (x.ReadOnly || x.CopyOnWrite) {
		s, err = s.Set(map[string]string{"readonly": "true"})
	}
	if x.CopyOnWrite && !x.ReadOnly && err == nil {
		s, err = s.With("cow", map[string]string{"dir": cowDir(s, x), "sparse": fmt.Sprint(x.SparseCOW)})
	}
	return s, err
}

// cowDir is where the reference keeps the diff of a file: beside it.
func cowDir(s *chain.Spec, x *nbdconf.Export) string {
	if path, ok := pathOf(s); ok && x.COWDir == "" {
		return filepath.Dir(path)
	}
	return x.COWDir
}

// hidden returns what an explicit false takes away.
func hidden(x *nbdconf.Export) (f proto.TransmissionFlags) {
	if x.Flush == nbdconf.False {
		f |= proto.FlagSendFlush
	}
	if x.FUA == nbdconf.False {
		f |= proto.FlagSendFUA
	}
	if x.Trim == nbdconf.False {
		f |= proto.FlagSendTrim
	}
	return f
}

// opening is all that decides what the device of an export is.
type opening struct {
	p *program
	x *nbdconf.Export
}

// settings are equal if the same would be opened, and done around it.
func (o *opening) settings(src source) string {
	x := o.x
	text, err := json.Marshal(struct {
		Source, Name, Virtual, COWDir, Wait, Before, After string
		Size                                               int64
		ReadOnly, Sync, CopyOnWrite, SparseCOW, Temporary  bool
	}{src.text(), x.ExportName, x.VirtStyle, x.COWDir, x.WaitFile, x.PreRun, x.PostRun,
		x.FileSize, x.ReadOnly, x.Sync, x.CopyOnWrite, x.SparseCOW, x.Temporary})
	if err != nil {
		panic(err) // plain fields only
	}
	return string(text)
}

// open opens the device for a client, or for all.
func (o *opening) open(ctx context.Context, c server.Client) (*block.Device, error) {
	src, err := o.p.source(o.x, c.Addr)
	if err != nil {
		return nil, err
	}
	if o.x.WaitFile != "" && !o.x.ReadOnly {
		return o.waiting(ctx, src)
	}
	return o.openSource(ctx, src, true)
}

// openSource opens files or a chain. Files that are not there are made if create
// is set, and filesize is.
func (o *opening) openSource(ctx context.Context, src source, create bool) (*block.Device, error) {
	create = create && o.x.FileSize > 0 && !o.x.Temporary
	if src.spec == nil {
		if create {
			if err := o.prepare(src.path); err != nil {
				return nil, err
			}
		}
		return o.openFile(src.path)
	}
	if o.x.MultiFile {
		if err := o.prepareParts(src.path, create); err != nil {
			return nil, err
		}
	}
	spec, err := refine(src.spec, o.x)
	if err != nil {
		return nil, err
	}
	return spec.Open(ctx)
}
