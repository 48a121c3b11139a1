package nbdconf

import (
	"bytes"
	"fmt"
	"strings"
	"unicode/utf8"

	"nbd.example/nbd/internal/typo"
)

// Pos is a place in a file. Line and Col count from 1; Col counts bytes. Line 0
// stands for the file as a whole.
type Pos struct {
	File string `json:"file"`
	Line int    `json:"line,omitempty"`
	Col  int    `json:"col,omitempty"`
}

// String returns the form file:line.
func (p Pos) String() string {
	if p.Line == 0 {
		return p.File
	}
	return fmt.Sprintf("%s:%d", p.File, p.Line)
}

// KeyFile is the text of one file, in its order. Nothing is interpreted.
type KeyFile struct {
	Name   string
	Groups []*Group
}

// Group is a section: [Name] and what follows. A group that is written twice is
// one group, as GLib has it.
type Group struct {
	Name    string
	Pos     Pos
	Again   []Pos // where it is continued
	Entries []*Entry
}

// Entry is one line key=value. Of two lines with the same key in the same group
// the later one holds.
type Entry struct {
	Key   string
	Value string // raw: leading space is gone, escapes are not resolved
	Pos   Pos    // of the key
	At    Pos    // of the value
}

// Last returns the entry that holds for key, or nil.
func (g *Group) Last(key string) *Entry {
	for i := len(g.Entries) - 1; i >= 0; i-- {
		if g.Entries[i].Key == key {
			return g.Entries[i]
		}
	}
	return nil
}

// ParseKeyFile reads a file in the format of GLib's GKeyFile, which is what the
// reference uses: [groups], key=value, comments on lines of their own. It
// returns all that it could read, and every error that it found; name is for the
// positions.
func ParseKeyFile(name string, text []byte) (*KeyFile, Problems) {
	p := parser{file: &KeyFile{Name: name}}
	text = p.withoutMark(text)
	for line := range bytes.Lines(text) {
		p.line++
		// GLib takes a carriage return away only where a newline follows.
		if l, ok := bytes.CutSuffix(line, []byte("\n")); ok {
			line = bytes.TrimSuffix(l, []byte("\r"))
		}
		p.parse(string(line))
	}
	return p.file, p.problems
}

type parser struct {
	file     *KeyFile
	group    *Group
	line     int
	problems Problems
}

func (p *parser) pos(col int) Pos { return Pos{File: p.file.Name, Line: p.line, Col: col + 1} }

func (p *parser) fail(col int, format string, a ...any) {
	p.problems.add(p.pos(col), Error, format, a...)
}

// withoutMark cuts off a byte order mark, which some editors of other systems
// write.
func (p *parser) withoutMark(text []byte) []byte {
	return bytes.TrimPrefix(text, []byte("\xef\xbb\xbf"))
}

const space = " \t\n\v\f\r" // what C's isspace knows

func (p *parser) parse(line string) {
	rest := strings.TrimLeft(line, space)
	col := len(line) - len(rest)
	switch {
	case rest == "" || rest[0] == '#':
	case rest[0] == '[':
		p.parseGroup(rest, col)
	case rest[0] == ';':
		p.fail(col, "a comment begins with #, not with ;")
	case !strings.Contains(rest, "="):
		p.fail(col, "%s is neither [section] nor key=value nor a # comment", typo.Quote(rest))
	default:
		p.parseEntry(rest, col)
	}
}

func (p *parser) parseGroup(rest string, col int) {
	end := strings.IndexByte(rest, ']')
	if end < 0 {
		p.fail(col, "section %s lacks its ]", typo.Quote(rest))
		return
	}
	if tail := strings.Trim(rest[end+1:], " \t"); tail != "" {
		p.fail(col+end+1, "%s behind a section's ]: a comment needs a line of its own", typo.Quote(tail))
		return
	}
	name := rest[1:end]
	switch {
	case name == "":
		p.fail(col, "a section without a name")
		return
	case !utf8.ValidString(name):
		p.fail(col, "the section's name %s is not UTF-8", typo.Quote(name))
		return
	case strings.ContainsFunc(name, func(r rune) bool { return r == '[' || r < ' ' || r == 0x7f }):
		p.fail(col, "the section's name %s holds a [ or a control character", typo.Quote(name))
		return
	}
	for _, g := range p.file.Groups {
		if g.Name == name {
			p.group = g
			g.Again = append(g.Again, p.pos(col))
			return
		}
	}
	p.group = &Group{Name: name, Pos: p.pos(col)}
	p.file.Groups = append(p.file.Groups, p.group)
}

func (p *parser) parseEntry(rest string, col int) {
	eq := strings.IndexByte(rest, '=')
	key := strings.TrimRight(rest[:eq], space)
	value := strings.TrimLeft(rest[eq+1:], space)
	switch {
	case key == "":
		p.fail(col, "a value without a key in front of its =")
		return
	case !validKey(key):
		p.fail(col, "the key %s holds what a key must not hold", typo.Quote(key))
		return
	case p.group == nil:
		p.fail(col, "key %s stands before the first section; a configuration begins with [generic]", typo.Quote(key))
		return
	case !utf8.ValidString(value) || strings.ContainsRune(value, 0):
		p.fail(len(rest)-len(value)+col, "the value of %s is not UTF-8 text", typo.Quote(key))
		return
	}
	p.group.Entries = append(p.group.Entries, &Entry{
		Key: key, Value: value,
		Pos: p.pos(col), At: p.pos(col + len(rest) - len(value)),
	})
}

// validKey tells whether s may be a key: no brackets but those of a locale at
// its end, as in name[de], and no control characters.
func validKey(s string) bool {
	if !utf8.ValidString(s) {
		return false
	}
	if i := strings.IndexByte(s, '['); i > 0 && strings.HasSuffix(s, "]") {
		s = s[:i] + s[i+1:len(s)-1]
	}
	return !strings.ContainsFunc(s, func(r rune) bool { return r == '[' || r == ']' || r < ' ' && r != '\t' || r == 0x7f })
}

// unescape resolves the escapes of a string value.
func unescape(s string) (string, error) {
	if !strings.ContainsRune(s, '\\') {
		return s, nil
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '\\' {
			b.WriteByte(s[i])
			continue
		}
		i++
		if i == len(s) {
			return "", fmt.Errorf(`%s ends with a single \; write \\ for a backslash`, typo.Quote(s))
		}
		const escapes, meanings = `sntr\`, " \n\t\r\\"
		k := strings.IndexByte(escapes, s[i])
		if k < 0 {
			return "", fmt.Errorf(`%s has the unknown escape \%c; write \\ for a backslash`, typo.Quote(s), s[i])
		}
		b.WriteByte(meanings[k])
	}
	return b.String(), nil
}

// escape is the reverse of unescape, for a value that begins behind "key = ".
func escape(s string) string {
	s = strings.NewReplacer(`\`, `\\`, "\n", `\n`, "\t", `\t`, "\r", `\r`).Replace(s)
	if strings.HasPrefix(s, " ") {
		s = `\s` + s[1:]
	}
	return s
}
