package nbdconf

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strings"

	"nbd.example/nbd/internal/opener"
	"nbd.example/nbd/internal/typo"
)

// maxFile bounds a configuration file, in bytes.
const maxFile = 16 << 20

// ErrEmpty says that a main file holds no section at all. With an export on the
// command line that is a way to say that there is no configuration.
var ErrEmpty = errors.New("it is empty; it must begin with [generic]")

// Load reads the main file and what it includes. The Config is never nil and
// holds what could be understood; whether it can be used says Problems.Err. The
// error is that of a main file that cannot be read, or ErrEmpty.
func Load(o opener.Opener, name string) (*Config, Problems, error) {
	text, err := opener.ReadFile(o, name, maxFile)
	if err != nil {
		return &Config{}, nil, fmt.Errorf("read configuration: %w", err)
	}
	l := loader{open: o, config: &Config{}}
	file := l.parse(name, text)
	if len(file.Groups) == 0 && len(l.problems) == 0 {
		return l.config, nil, fmt.Errorf("%s: %w", name, ErrEmpty)
	}
	l.main(file)
	l.include()
	l.checkAll()
	l.sort()
	return l.config, l.problems, nil
}

type loader struct {
	open     opener.Opener
	config   *Config
	problems Problems
}

// sort brings problems into the order in which a reader meets their places.
func (l *loader) sort() {
	slices.SortStableFunc(l.problems, func(a, b Problem) int {
		if a.Pos.File != b.Pos.File {
			return cmp.Compare(slices.Index(l.config.Files, a.Pos.File), slices.Index(l.config.Files, b.Pos.File))
		}
		return cmp.Compare(a.Pos.Line, b.Pos.Line)
	})
}

func (l *loader) parse(name string, text []byte) *KeyFile {
	file, problems := ParseKeyFile(name, text)
	l.config.Files = append(l.config.Files, name)
	l.problems = append(l.problems, problems...)
	return file
}

func (l *loader) main(file *KeyFile) {
	for i, g := range file.Groups {
		switch {
		case g.Name == "generic":
			l.generic(g)
			continue
		case i == 0:
			l.problems.add(g.Pos, Error, "the first section must be [generic], found [%s]", g.Name)
		}
		l.export(g)
	}
}

// include reads the files of includedir.
func (l *loader) include() {
	dir := l.config.Generic.IncludeDir
	if dir == "" {
		return
	}
	pos := l.config.Generic.where["includedir"]
	entries, err := l.open.ReadDir(dir)
	if err != nil {
		l.problems.add(pos, Error, "includedir: %v", err)
		return
	}
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".conf") || e.IsDir() {
			continue
		}
		name := filepath.Join(dir, e.Name())
		text, err := opener.ReadFile(l.open, name, maxFile)
		if err != nil {
			l.problems.add(Pos{File: name}, Error, "%s", plain(err))
			continue
		}
		for _, g := range l.parse(name, text).Groups {
			if g.Name == "generic" {
				l.problems.add(g.Pos, Error, "an included file must not have a [generic] section; move it to %s", l.config.Files[0])
				continue
			}
			l.export(g)
		}
	}
}

// plain takes the file's name from an error, where the message has it already.
func plain(err error) error {
	var p *fs.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}

func (l *loader) generic(g *Group) {
	l.config.Generic.where = places{}
	l.set(g, true, &l.config.Generic, nil)
	c := &l.config.Generic
	c.ListenAddr = splitHosts(c.ListenAddr)
	if c.MaxThreads < 0 {
		l.problems.add(c.where["max_threads"], Warning, "max_threads is below 0; taking the default")
		c.MaxThreads = 0
	}
	switch {
	case c.KeyFile == "" && c.DemandsTLS():
		key, pos := c.forced()
		l.problems.add(pos, Error, "%s without keyfile: no client could ever connect", key)
	case c.KeyFile == "" && (c.CertFile != "" || c.CACertFile != ""):
		l.problems.add(g.Pos, Warning, "certfile or cacertfile without keyfile: TLS is off")
	case c.KeyFile != "" && c.CertFile == "":
		c.CertFile = c.KeyFile
	}
	l.checkLimits(c)
	if c.DualListen && c.UnixSock == "" {
		l.problems.add(c.where["duallisten"], Warning, "duallisten without unixsock has no effect")
	}
	for _, text := range c.Listen {
		if _, err := ParseAddress(text); err != nil {
			l.problems.add(c.where["listen"], Error, "listen: %v", err)
		}
	}
}

func (l *loader) export(g *Group) {
	x := &Export{Name: g.Name, Pos: g.Pos, where: places{}}
	for _, other := range l.config.Exports {
		if other.Name == g.Name {
			l.problems.add(g.Pos, Unknown, "export %s is already defined at %s, which holds", typo.Quote(g.Name), other.Pos)
			return
		}
	}
	l.set(g, false, nil, x)
	l.config.Exports = append(l.config.Exports, x)
	l.checkExport(g, x)
}

// checkExport looks at keys that depend on each other.
func (l *loader) checkExport(g *Group, x *Export) {
	switch {
	case g.Last("exportname") == nil:
		l.problems.add(g.Pos, Error, "[%s] lacks exportname, which says what to serve", g.Name)
	case x.ExportName == "" && !x.given("exportname"): // its value is an error already
	case x.ExportName == "":
		l.problems.add(x.Where("exportname"), Error, "exportname in [%s] is empty", g.Name)
	case x.ExportName != strings.TrimRight(x.ExportName, space):
		l.problems.add(x.Where("exportname"), Warning, "exportname in [%s] ends in white space, which is a part of it", g.Name)
	}
	if x.FileSize < 0 {
		l.problems.add(x.Where("filesize"), Warning, "filesize in [%s] is below 0; taking the size of the file", g.Name)
		x.FileSize = 0
	}
	x.MaxConnections = max(x.MaxConnections, 0)
	if x.DemandsTLS() && l.config.Generic.KeyFile == "" {
		key := "force_tls"
		if !x.ForceTLS {
			key = "tlsonly"
		}
		l.problems.add(x.Where(key), Error, "%s in [%s] without keyfile in [generic]: no client could ever use the export", key, g.Name)
	}
	l.warnOfFalse(x)
	l.checkStorage(x)
	l.checkAccess(x)
}
