package nbdconf

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"nbd.example/nbd/internal/typo"
)

// NewExport makes an export as a section of c with that name and these keys would
// describe it. Values are as they are meant, without the escapes of a file. from stands for
// the file in positions. Keys that are not known are problems, as in Load.
func (c *Config) NewExport(name string, keys map[string]string, from string) (*Export, Problems) {
	at := Pos{File: from}
	g := &Group{Name: name, Pos: at}
	for k, v := range keys {
		g.Entries = append(g.Entries, &Entry{Key: k, Value: escape(v), Pos: at, At: at})
	}
	// One map has many orders, messages should have one.
	slices.SortFunc(g.Entries, func(a, b *Entry) int { return strings.Compare(a.Key, b.Key) })
	l := loader{config: &Config{Generic: c.Generic}}
	switch {
	case name == "generic":
		l.problems.add(at, Error, "an export cannot be called generic: in a configuration that is the name of the section about the server")
	case strings.ContainsFunc(name, func(r rune) bool { return r == '[' || r == ']' || r < ' ' || r == 0x7f }):
		l.problems.add(at, Error, "the export's name %s holds a bracket or a control character", typo.Quote(name))
	}
	for _, e := range g.Entries {
		if !validKey(e.Key) || e.Key == "" {
			l.problems.add(at, Error, "the key %s holds what a key must not hold", typo.Quote(e.Key))
		}
	}
	l.export(g)
	x := l.config.Exports[0]
	l.checkAntique(x)
	return x, l.problems
}

// Values returns the keys of x that have other values than their defaults, as
// NewExport takes them.
func (x *Export) Values() map[string]string {
	m := map[string]string{"exportname": x.ExportName}
	for _, k := range exportKeys {
		if k.field == nil || k.Name == "exportname" {
			continue
		}
		if v, ok := text(k.field(nil, x)); ok {
			if plain, err := unescape(v); err == nil {
				m[k.Name] = plain
			}
		}
	}
	return m
}

// WriteValues writes a section of that name with keys as Values returns them: exportname
// first, the others by name.
func WriteValues(w io.Writer, name string, keys map[string]string) error {
	var b strings.Builder
	fmt.Fprintf(&b, "[%s]\n", name)
	if v, ok := keys["exportname"]; ok {
		fmt.Fprintf(&b, "\texportname = %s\n", escape(v))
	}
	for _, k := range slices.Sorted(maps.Keys(keys)) {
		if k != "exportname" {
			fmt.Fprintf(&b, "\t%s = %s\n", k, escape(keys[k]))
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}
