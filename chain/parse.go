package chain

import (
	"fmt"
	"strings"
)

// Limits of a text.
const (
	maxText     = 1 << 16 // bytes
	maxPath     = 1 << 12 // bytes of what is looked for as an existing file
	maxElements = 64
)

// white is what counts as white space.
const white = " \t\r\n"

// Error tells what is wrong with a text, and where.
type Error struct {
	Text string
	Pos  int // bytes from the start of Text
	Msg  string
}

func (e *Error) Error() string {
	return fmt.Sprintf("chain %s, byte %d: %s", bounded(e.Text, 120), e.Pos+1, e.Msg)
}

// bounded quotes a text, cut after about n bytes.
func bounded(text string, n int) string {
	if len(text) > n {
		return fmt.Sprintf("%q...", text[:n])
	}
	return fmt.Sprintf("%q", text)
}

// Parse reads a text and checks it. See the package comment. Nothing is opened,
// but whether a file of the text's name exists is looked up. Errors in the text
// are of type *Error.
func (r *Registry) Parse(text string) (*Spec, error) {
	p := &parser{r: r, text: text}
	if len(text) > maxText {
		return nil, p.fail(0, "it has %d bytes, at most %d are read", len(text), maxText)
	}
	p.end = len(strings.TrimRight(text, white))
	p.skipWhite()
	if p.atEnd() {
		return nil, p.fail(p.pos, "it is empty; name a file like /srv/disk.img or a back end (%s)", names(r.Backends()))
	}
	s := &Spec{}
	if err := p.parseBackend(s); err != nil {
		return nil, err
	}
	for !p.atEnd() {
		n := p.separator(p.pos)
		if n == 0 {
			return nil, p.fail(p.pos, "unexpected %s; layers are separated by \" | \" or \"::\"", bounded(p.text[p.pos:p.end], 20))
		}
		p.pos += n
		if len(s.layers)+1 == maxElements {
			return nil, p.fail(p.pos, "more than %d elements", maxElements)
		}
		if err := p.parseLayer(s); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// parser goes through a text once.
type parser struct {
	r    *Registry
	text string
	pos  int
	end  int // without white space at the end
}

func (p *parser) fail(pos int, format string, args ...any) error {
	return &Error{Text: p.text, Pos: pos, Msg: fmt.Sprintf(format, args...)}
}

func (p *parser) atEnd() bool { return p.pos >= p.end }

func (p *parser) skipWhite() {
	for !p.atEnd() && isWhite(p.text[p.pos]) {
		p.pos++
	}
}

func isWhite(c byte) bool { return strings.IndexByte(white, c) >= 0 }

// separator returns the length of the separator at i, white space included, or 0.
func (p *parser) separator(i int) int {
	at := i
	if strings.HasPrefix(p.text[at:p.end], "::") {
		at += 2
	} else {
		for at < p.end && isWhite(p.text[at]) {
			at++
		}
		if at == i || at == p.end || p.text[at] != '|' || at+1 < p.end && !isWhite(p.text[at+1]) {
			return 0
		}
		at++
	}
	for at < p.end && isWhite(p.text[at]) {
		at++
	}
	return at - i
}

// raw reads up to the next separator, or to one of the bytes in stop if that
// comes first. "::" is not seen between square brackets.
func (p *parser) raw(stop string) string {
	start, depth := p.pos, 0
	for ; !p.atEnd(); p.pos++ {
		switch c := p.text[p.pos]; {
		case strings.IndexByte(stop, c) >= 0:
			return p.text[start:p.pos]
		case c == '[':
			depth++
		case c == ']' && depth > 0:
			depth--
		case c == ':' && depth > 0:
		case p.separator(p.pos) > 0:
			return p.text[start:p.pos]
		}
	}
	return p.text[start:p.pos]
}

// quoted reads a text in double quotes, which begins here.
func (p *parser) quoted() (string, error) {
	var b strings.Builder
	start := p.pos
	for p.pos++; !p.atEnd(); p.pos++ {
		switch c := p.text[p.pos]; c {
		case '"':
			p.pos++
			return b.String(), nil
		case '\\':
			p.pos++
			if p.atEnd() || p.text[p.pos] != '"' && p.text[p.pos] != '\\' {
				return "", p.fail(p.pos-1, "in double quotes a backslash is written \\\\ and a quote \\\"")
			}
			b.WriteByte(p.text[p.pos])
		default:
			b.WriteByte(c)
		}
	}
	return "", p.fail(start, "the double quote that begins here does not end")
}

// value reads a value up to a comma or a separator.
func (p *parser) value() (string, error) {
	p.skipWhite()
	if p.atEnd() || p.text[p.pos] != '"' {
		return strings.Trim(p.raw(","), white), nil
	}
	v, err := p.quoted()
	if err != nil {
		return "", err
	}
	if !p.atEnd() && p.text[p.pos] != ',' && p.separator(p.pos) == 0 {
		return "", p.fail(p.pos, "unexpected %s after the closing quote", bounded(p.text[p.pos:p.end], 20))
	}
	return v, nil
}

// looksLikePath reports whether a text begins as only paths do.
func looksLikePath(s string) bool {
	for _, prefix := range []string{"/", "./", "../", `.\`, `..\`} {
		if strings.HasPrefix(s, prefix) {
			return true
		}
	}
	letter := len(s) >= 3 && ('a' <= s[0]|0x20 && s[0]|0x20 <= 'z')
	return letter && s[1] == ':' && (s[2] == '\\' || s[2] == '/')
}

// parseBackend reads the first element.
func (p *parser) parseBackend(s *Spec) error {
	start := p.pos
	if path, ok, err := p.file(); err != nil {
		return err
	} else if ok {
		return p.setFile(s, start, path)
	}
	name := p.raw(":")
	b, ok := p.r.backend(name)
	if !ok {
		_, isLayer := p.r.layer(name)
		return p.fail(start, "%s", p.unknownBackend(name, isLayer))
	}
	a, err := p.params(b.Element, start)
	if err != nil {
		return err
	}
	s.registry, s.backend, s.args = p.r, b, a
	return nil
}

// file reads a file's path if there is one.
func (p *parser) file() (path string, ok bool, err error) {
	rest := p.text[p.pos:p.end]
	if p.r.exists(rest) {
		p.pos = p.end
		return rest, true, nil
	}
	if rest[0] == '"' {
		path, err = p.quoted()
		return path, true, err
	}
	start := p.pos
	if path = p.raw(""); looksLikePath(path) || p.r.exists(path) {
		return path, true, nil
	}
	p.pos = start
	return "", false, nil
}

func (p *parser) setFile(s *Spec, start int, path string) error {
	spec, err := p.r.File(path)
	if err != nil {
		return p.fail(start, "%v", err)
	}
	*s = *spec
	return nil
}

func (p *parser) unknownBackend(name string, isLayer bool) string {
	if isLayer {
		return fmt.Sprintf("%q is a layer, and a chain begins with a back end or a file: write \"/srv/disk.img | %s\"", name, name)
	}
	return fmt.Sprintf("unknown back end %s, and no file of that name%s; back ends: %s; a file that does not exist yet is written ./NAME",
		bounded(name, 40), suggest(name, p.r.Backends()), names(p.r.Backends()))
}

// parseLayer reads one more element.
func (p *parser) parseLayer(s *Spec) error {
	start := p.pos
	name := p.raw(":")
	l, ok := p.r.layer(name)
	if !ok {
		if name == "" || name[0] == '|' {
			return p.fail(start, "the layer's name is missing; layers: %s", names(p.r.Layers()))
		}
		if _, isBackend := p.r.backend(name); isBackend {
			return p.fail(start, "%q is a back end, and only the first element of a chain is one", name)
		}
		return p.fail(start, "unknown layer %s%s; layers: %s; a file's name that holds a separator is put in double quotes",
			bounded(name, 40), suggest(name, p.r.Layers()), names(p.r.Layers()))
	}
	a, err := p.params(l.Element, start)
	if err != nil {
		return err
	}
	s.layers = append(s.layers, layerSpec{l, a})
	return nil
}

// params reads the parameters of e, whose name has been read.
func (p *parser) params(e Element, start int) (Args, error) {
	a := newArgs(e)
	if !p.atEnd() && p.text[p.pos] == ':' && p.separator(p.pos) == 0 {
		p.pos++
		for first := true; ; first = false {
			if err := p.param(&a, first); err != nil {
				return a, err
			}
			if p.atEnd() || p.text[p.pos] != ',' {
				break
			}
			p.pos++
		}
	}
	if err := a.finish(); err != nil {
		return a, p.fail(start, "%v", err)
	}
	return a, nil
}

// param reads one parameter.
func (p *parser) param(a *Args, first bool) error {
	p.skipWhite()
	start := p.pos
	key, ok := p.key()
	if i, known := a.element.param(key); ok && known {
		v, err := p.value()
		if err == nil {
			err = p.set(a, i, start, v)
		}
		return err
	}
	p.pos = start
	isQuoted := !p.atEnd() && p.text[p.pos] == '"'
	v, err := p.value()
	if err != nil {
		return err
	}
	main := a.element.main()
	verbatim := main >= 0 && a.element.Params[main].Verbatim
	switch {
	case ok && !verbatim && !isQuoted:
		return p.fail(start, "%s", a.element.unknownParam(key))
	case first && v == "" && !isQuoted: // "name:" without anything
		return nil
	case first && main >= 0:
		return p.set(a, main, start, v)
	case verbatim && !isQuoted:
		return p.more(a, main, start, v)
	}
	if i, known := a.element.param(v); known && a.element.Params[i].Kind == Bool && !isQuoted {
		return p.set(a, i, start, "true")
	}
	return p.fail(start, "%q: unexpected %s; %s", a.element.Name, bounded(v, 40), a.element.paramList())
}

// key reads "key=", and reports whether there is one.
func (p *parser) key() (string, bool) {
	i := strings.IndexByte(p.text[p.pos:p.end], '=')
	if i < 0 || !isName(p.text[p.pos:p.pos+i]) {
		return "", false
	}
	key := p.text[p.pos : p.pos+i]
	p.pos += i + 1
	return key, true
}

// set sets a parameter once.
func (p *parser) set(a *Args, i, start int, v string) error {
	if a.seen[i] {
		return p.fail(start, "%q: parameter %q is given twice", a.element.Name, a.element.Params[i].Name)
	}
	if err := a.set(i, v); err != nil {
		return p.fail(start, "%v", err)
	}
	return nil
}

// more adds to the text of a verbatim main parameter.
func (p *parser) more(a *Args, main, start int, v string) error {
	if a.seen[main] {
		v = a.values[main] + "," + v
	}
	if err := a.set(main, v); err != nil {
		return p.fail(start, "%v", err)
	}
	return nil
}
