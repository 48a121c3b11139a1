package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"nbd.example/nbd/block"
	"nbd.example/nbd/chain"
	"nbd.example/nbd/chain/core"
	"nbd.example/nbd/internal/nbdconf"
	"nbd.example/nbd/internal/opener"
	"nbd.example/nbd/proto"
	"nbd.example/nbd/server"
)

// source is what an export is made of: a file, or a chain.
type source struct {
	path string      // "" for a chain
	spec *chain.Spec // nil for a file
}

// text is what to write in a configuration for it.
func (s source) text() string {
	if s.spec != nil {
		return s.spec.String()
	}
	return s.path
}

// spec finds out what an exportname means.
func (p *program) spec(x *nbdconf.Export) (source, error) {
	name := x.ExportName
	exists := func(path string) bool {
		info, err := p.env.open.Stat(path)
		return err == nil && !info.IsDir()
	}
	// Old configurations know of no chains: what could be a path is one, unless
	// it has a separator of chains and there is no such file.
	plain := filepath.IsAbs(name) && !strings.Contains(name, " | ") && !strings.Contains(name, "::")
	if plain || x.Temporary || exists(name) {
		return source{path: p.env.open.Abs(name)}, nil
	}
	open := p.env.open
	r := core.Registry(core.Files{Open: open.OpenFile, Stat: open.Stat, CreateTemp: func(dir, pattern string) (*os.File, error) {
		return nameless(open, cmp.Or(dir, os.TempDir()), pattern)
	}})
	r.Exists = exists
	spec, err := r.Parse(name)
	if err != nil {
		return source{}, err
	}
	spec = spec.Absolute(p.env.open.Abs("."))
	if path, ok := spec.Path(); ok && spec.String() == mustFile(r, path) {
		return source{path: path}, nil
	}
	return source{spec: spec}, nil
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
	src, err := p.spec(x)
	if err == nil && src.spec != nil {
		src.spec, err = refine(src.spec, x)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: exportname: %w", x.Where("exportname"), err)
	}
	rules, err := p.rules(x)
	if err != nil {
		return nil, err
	}
	o := &opening{p: p, x: x, src: src}
	return &server.Export{
		Name: x.Name, Open: o.open, Private: x.CopyOnWrite && !x.ReadOnly || x.Temporary,
		Settings: o.settings(), ReadOnly: x.ReadOnly, Rotational: x.Rotational, Hide: hidden(x),
		MaxConnections: x.MaxConnections, RequireTLS: x.ForceTLS, Allow: rules,
	}, nil
}

// refine applies the keys of an export to a chain.
func refine(s *chain.Spec, x *nbdconf.Export) (*chain.Spec, error) {
	_, file := s.Path()
	var err error
	if x.FileSize > 0 && err == nil {
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
	if path, ok := s.Path(); ok && x.COWDir == "" {
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

// maxRules bounds a list of addresses, in bytes.
const maxRules = 16 << 20

// rules reads the list of an export's clients. Only a file that does not exist
// lets everybody in: one that cannot be read must not.
func (p *program) rules(x *nbdconf.Export) (*server.Rules, error) {
	if x.AuthFile == "" {
		return nil, nil
	}
	text, err := opener.ReadFile(p.env.open, x.AuthFile, maxRules)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("%s: authfile: %w", x.Where("authfile"), err)
	}
	rules, err := server.ParseRules(strings.NewReader(string(text)), x.AuthFile)
	if err != nil {
		return nil, fmt.Errorf("%s: authfile: %w", x.Where("authfile"), err)
	}
	return rules, nil
}

// opening is all that decides what the device of an export is.
type opening struct {
	p   *program
	x   *nbdconf.Export
	src source
}

// settings are equal if the same would be opened.
func (o *opening) settings() string {
	x := o.x
	text, err := json.Marshal(struct {
		Source                                            string
		Size                                              int64
		ReadOnly, Sync, CopyOnWrite, SparseCOW, Temporary bool
		COWDir                                            string
	}{o.src.text(), x.FileSize, x.ReadOnly, x.Sync, x.CopyOnWrite, x.SparseCOW, x.Temporary, x.COWDir})
	if err != nil {
		panic(err) // plain fields only
	}
	return string(text)
}

func (o *opening) open(ctx context.Context, _ server.Client) (*block.Device, error) {
	if o.src.spec != nil {
		return o.src.spec.Open(ctx)
	}
	return o.openFile()
}
