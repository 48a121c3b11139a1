// Package nbdtab reads the table of devices of nbd-client, /etc/nbdtab.
//
// # Concepts
//
// A line describes a kernel device in up to four fields, with blanks or tabs between
// them:
//
//	nbd0  server.example.com  disk        swap,timeout=60
//	nbd1  /run/nbd.sock       disk        unix
//	nbd2  nbds://server/disk  auto
//
// The device, the server, the export's name, and options by commas. Where the second
// field is a URI there is no third one, since a URI names the export. A line of two
// fields means the default export. A field that begins with # begins a comment.
//
// The options are the keys of [clientflags.TabOptions]. What is unknown is a warning,
// as in the reference, unless it begins with an underscore: those are everybody's own.
// A line with an error does no harm to the others.
package nbdtab

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"strings"

	"nbd.example/nbd/internal/clientflags"
	"nbd.example/nbd/internal/typo"
)

// maxLine bounds a line, in bytes.
const maxLine = 64 << 10

// Entry is one line.
type Entry struct {
	Line   int
	Device string // as in nbd0
	Flags  *clientflags.Flags
	// Err says what is wrong with the line; nil if nothing is.
	Err error
}

// Table is a file.
type Table struct {
	Name    string // of the file
	Entries []Entry
	// Warnings say what has no effect, with file and line.
	Warnings []string
}

// Parse reads a table. name is the file's. The error is that of reading; what is wrong
// with a line is in its entry.
func Parse(r io.Reader, name string) (*Table, error) {
	t := &Table{Name: name}
	lines := map[string]int{}
	s := bufio.NewScanner(r)
	s.Buffer(nil, maxLine)
	n := 0
	for s.Scan() {
		n++
		e := t.line(n, s.Text())
		if e == nil {
			continue
		}
		if first, twice := lines[e.Device]; twice && e.Err == nil {
			e.Err = t.at(n, "%s is there already, in line %d", e.Device, first)
		} else if !twice {
			lines[e.Device] = n
		}
		t.Entries = append(t.Entries, *e)
	}
	err := s.Err()
	if errors.Is(err, bufio.ErrTooLong) {
		err = fmt.Errorf("a line of over %d bytes", maxLine)
	}
	if err != nil {
		return nil, fmt.Errorf("%s:%d: %w", name, n+1, err)
	}
	return t, nil
}

// at makes an error about a line.
func (t *Table) at(line int, format string, a ...any) error {
	return fmt.Errorf("%s:%d: %w", t.Name, line, fmt.Errorf(format, a...))
}

// line reads one line. It returns nil for one that says nothing.
func (t *Table) line(n int, text string) *Entry {
	fields := strings.Fields(text)
	for i, f := range fields {
		if strings.HasPrefix(f, "#") {
			fields = fields[:i]
			break
		}
	}
	if len(fields) == 0 {
		return nil
	}
	e := &Entry{Line: n, Device: strings.TrimPrefix(fields[0], "/dev/"), Flags: &clientflags.Flags{}}
	e.Err = t.fill(e, fields[1:])
	return e
}

// fill reads the fields behind the device.
func (t *Table) fill(e *Entry, fields []string) error {
	if !clientflags.IsDeviceName(e.Device) {
		return t.at(e.Line, "%s is not the name of an NBD device, which is like nbd0", typo.Quote(e.Device))
	}
	if len(fields) == 0 {
		return t.at(e.Line, "the server is missing: a line is made of device, server, export and options")
	}
	f := e.Flags
	f.Device = "/dev/" + e.Device
	server, fields := fields[0], fields[1:]
	if clientflags.IsURI(server) {
		f.URIs = []string{server}
	} else if len(fields) > 0 {
		f.Name, fields = fields[0], fields[1:]
	}
	if len(fields) > 1 {
		return t.at(e.Line, "%s is one field too many: options are separated by commas, without blanks", typo.Quote(fields[1]))
	}
	var errs []error
	if len(fields) == 1 {
		for _, word := range strings.Split(fields[0], ",") {
			if err := t.option(e, word); err != nil {
				errs = append(errs, err)
			}
		}
	}
	if err := errors.Join(append(errs, t.server(e, server))...); err != nil {
		return err
	}
	if err := f.Check(); err != nil {
		return t.at(e.Line, "%w", err)
	}
	return nil
}

// server takes the second field, once it is known whether it is a path.
func (t *Table) server(e *Entry, server string) error {
	f := e.Flags
	switch {
	case len(f.URIs) > 0:
		return nil
	case f.Unix || strings.HasPrefix(server, "/"):
		// The reference demands the word unix, and would ask the name service for
		// the path without it.
		f.Unix, f.Host = true, server
		return nil
	}
	host, port, err := clientflags.SplitHost(server)
	if err != nil {
		return t.at(e.Line, "%w", err)
	}
	if f.Host = host; port != "" && f.Port == "" {
		f.Port = port
	}
	return nil
}

// option takes one option.
func (t *Table) option(e *Entry, word string) error {
	key, value, has := strings.Cut(word, "=")
	if strings.HasPrefix(key, "_") {
		return nil
	}
	if key == "" {
		if has {
			return t.at(e.Line, "%s has no key", typo.Quote(word))
		}
		return nil // a comma too many
	}
	o := clientflags.TabOption(key)
	switch {
	case o == nil:
		t.Warnings = append(t.Warnings, fmt.Sprintf("%s:%d: unknown option %s has no effect%s", t.Name, e.Line, typo.Quote(key), hint(key)))
		return nil
	case o.Arg == "" && has:
		return t.at(e.Line, "option %s takes no value, but has %s", key, typo.Quote(value))
	case o.Arg != "" && !has:
		return t.at(e.Line, "option %s needs a value: %s=%s", key, key, o.Arg)
	}
	if err := e.Flags.Set(o, value); err != nil {
		return t.at(e.Line, "option %s: %w", key, err)
	}
	return nil
}

// Find returns the line of a device, as in nbd0.
func (t *Table) Find(device string) (*Entry, error) {
	device = strings.TrimPrefix(device, "/dev/")
	var names []string
	for i, e := range t.Entries {
		if e.Device == device {
			return &t.Entries[i], e.Err
		}
		names = append(names, e.Device)
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("%s describes no device; add a line, as in \"%s server.example.com export\", or name a server", t.Name, device)
	}
	return nil, fmt.Errorf("%s does not describe %s; it has %s", t.Name, device, list(names))
}

// list names some of what there is.
func list(names []string) string {
	const most = 8
	if len(names) > most {
		return strings.Join(names[:most], ", ") + fmt.Sprintf(" and %d more", len(names)-most)
	}
	return strings.Join(names, ", ")
}

// hint returns "; did you mean …?" or nothing.
func hint(key string) string {
	var names []string
	for _, o := range clientflags.TabOptions() {
		names = append(names, o.Tab)
	}
	return typo.Hint(key, names)
}
