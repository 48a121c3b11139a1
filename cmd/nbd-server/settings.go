package main

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"nbd.example/nbd/internal/nbdconf"
	"nbd.example/nbd/internal/serverflags"
)

// load reads the configuration file, and adds the export of the command line.
func (p *program) load() (*nbdconf.Config, nbdconf.Problems, error) {
	name := p.flags.Config
	if name == "" {
		name, _ = serverflags.Files()
	}
	conf, problems, err := nbdconf.Load(p.env.open, p.env.open.Abs(name))
	switch {
	case err == nil:
	case p.flags.File != "" && (errors.Is(err, fs.ErrNotExist) || errors.Is(err, nbdconf.ErrEmpty)):
		// That is how a command line says that there is no configuration.
	case p.flags.Config == "" && errors.Is(err, fs.ErrNotExist):
		return conf, problems, fmt.Errorf("nothing to serve: there is no %s; name a file, as in \"nbd-server 10809 /srv/disk.img\", or a configuration with -C", name)
	default:
		return conf, problems, err
	}
	if p.flags.File != "" {
		// Last, so that its name is the one that is in the way of another.
		conf.Exports = append(conf.Exports, p.commandLineExport())
	} else if len(conf.Exports) == 0 && problems.Err() == nil {
		return conf, problems, fmt.Errorf("nothing to serve: %s has no export; add a section with an exportname, or name a file on the command line", name)
	}
	return conf, append(problems, p.clashes(conf)...), nil
}

// commandLineExport is the default export.
func (p *program) commandLineExport() *nbdconf.Export {
	f := p.flags
	x := &nbdconf.Export{
		ExportName: f.File, FileSize: f.Size, ReadOnly: f.ReadOnly, CopyOnWrite: f.CopyOnWrite,
		MultiFile: f.MultiFile, Timeout: f.Timeout,
		AuthFile: f.AuthFile, MaxConnections: f.MaxConnections,
		Pos: nbdconf.Pos{File: "command line"},
	}
	if x.AuthFile == "" {
		_, x.AuthFile = serverflags.Files()
	}
	if f.MultiFile {
		x.ExportName = p.env.open.Abs(f.File)
	}
	if s, err := p.source(x, nil); err == nil && !x.MultiFile && !strings.Contains(x.ExportName, "%") {
		x.ExportName = s.text()
	}
	return x
}

// idleOptions warns of options that need a file on the command line.
func (p *program) idleOptions() {
	f := p.flags
	if f.File != "" {
		return
	}
	for _, o := range []struct {
		name  string
		given bool
	}{{"-r", f.ReadOnly}, {"-c", f.CopyOnWrite}, {"-l", f.AuthFile != ""}, {"-m", f.MultiFile}, {"-a", f.Timeout != 0}, {"--oldstyle", f.OldStyle}} {
		if o.given {
			p.log.Warn("option " + o.name + " is for the file on the command line, and there is none")
		}
	}
}
