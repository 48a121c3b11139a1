package chain

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"

	"nbd.example/nbd/block"
)

// Kind says what a parameter's value is.
type Kind uint8

// Kinds of values.
const (
	Text     Kind = iota // as it is
	Path                 // of a file or folder
	Size                 // a number of bytes, like 512M
	Number               // a whole number, not negative
	Bool                 // true or false
	Duration             // like 10ms, not negative
)

var kindNames = [...]string{"text", "path", "size", "number", "switch", "duration"}

// String returns the name that help texts use.
func (k Kind) String() string {
	if int(k) < len(kindNames) {
		return kindNames[k]
	}
	return "unknown"
}

// Param declares a parameter of an element.
type Param struct {
	Name string // lower-case letters, digits and hyphens
	Kind Kind
	Help string // one line
	// Main says that the key may be left out. At most one parameter of an element
	// has it.
	Main bool
	// Verbatim says that the main parameter is a text that may hold "=" and
	// commas: what is no declared key belongs to it. Only with Main and Text.
	Verbatim bool
	Required bool
	// Default is what is meant when the parameter is not given, for the help and
	// so that texts that mean the same are equal. The Args return it. "" means
	// the zero value.
	Default string
}

// Element declares what a back end or a layer have in common.
type Element struct {
	Name    string // at least two lower-case letters, digits and hyphens, a letter first
	Summary string // one line
	Params  []Param
	// Check, if not nil, looks for what the kinds of the parameters cannot tell.
	// It must not open anything.
	Check func(a Args) error
}

// Backend declares a back end.
type Backend struct {
	Element
	// Open opens it. It may be called concurrently.
	Open func(ctx context.Context, a Args) (block.Backend, error)
}

// Layer declares a layer.
type Layer struct {
	Element
	// Make makes it. It may be called concurrently.
	Make func(a Args) (block.Layer, error)
}

// FileElement is the name of the back end that texts without a name mean. Its
// main parameter is the path.
const FileElement = "file"

// Registry holds the elements that chains are made of. It is filled first; from
// then on its methods may be called concurrently. The zero value is empty.
type Registry struct {
	// Exists reports whether a text names an existing file that is not a folder.
	// Nil asks the system.
	Exists func(path string) bool

	backends []Backend
	layers   []Layer
}

// Backend adds a back end. It panics if the declaration makes no sense: that
// is a mistake in a program, not in its input.
func (r *Registry) Backend(b Backend) {
	r.mustBeNew(b.Element)
	if b.Open == nil {
		panic(fmt.Sprintf("chain: back end %q has no Open", b.Name))
	}
	r.backends = append(r.backends, b)
}

// Layer adds a layer, like Backend.
func (r *Registry) Layer(l Layer) {
	r.mustBeNew(l.Element)
	if l.Make == nil {
		panic(fmt.Sprintf("chain: layer %q has no Make", l.Name))
	}
	r.layers = append(r.layers, l)
}

// Backends returns the elements that are back ends, in the order in which they
// were added.
func (r *Registry) Backends() []Element {
	list := make([]Element, len(r.backends))
	for i, b := range r.backends {
		list[i] = b.Element
	}
	return list
}

// Layers returns the elements that are layers, in the order in which they were
// added.
func (r *Registry) Layers() []Element {
	list := make([]Element, len(r.layers))
	for i, l := range r.layers {
		list[i] = l.Element
	}
	return list
}

func (r *Registry) backend(name string) (Backend, bool) {
	for _, b := range r.backends {
		if b.Name == name {
			return b, true
		}
	}
	return Backend{}, false
}

func (r *Registry) layer(name string) (Layer, bool) {
	for _, l := range r.layers {
		if l.Name == name {
			return l, true
		}
	}
	return Layer{}, false
}

func (r *Registry) exists(path string) bool {
	if path == "" || len(path) > maxPath || strings.ContainsRune(path, 0) {
		return false
	}
	if r.Exists != nil {
		return r.Exists(path)
	}
	info, err := os.Stat(path)
	return err == nil && !info.IsDir()
}

// mustBeNew panics unless e can be added.
func (r *Registry) mustBeNew(e Element) {
	if err := e.check(); err != nil {
		panic(fmt.Sprintf("chain: element %q: %v", e.Name, err))
	}
	_, backend := r.backend(e.Name)
	_, layer := r.layer(e.Name)
	if backend || layer {
		panic(fmt.Sprintf("chain: element %q is declared twice", e.Name))
	}
}

// check tells what is wrong with a declaration.
func (e Element) check() error {
	if len(e.Name) < 2 || !isName(e.Name) {
		return fmt.Errorf("the name is not two or more lower-case letters, digits and hyphens")
	}
	mains := 0
	for i, p := range e.Params {
		if !isName(p.Name) {
			return fmt.Errorf("parameter name %q is not made of lower-case letters, digits and hyphens", p.Name)
		}
		for _, q := range e.Params[:i] {
			if p.Name == q.Name {
				return fmt.Errorf("parameter %q is declared twice", p.Name)
			}
		}
		if p.Main {
			mains++
		}
		if p.Verbatim && (!p.Main || p.Kind != Text) {
			return fmt.Errorf("parameter %q is verbatim, but not a main text", p.Name)
		}
		if p.Required && p.Default != "" {
			return fmt.Errorf("parameter %q is required, and has a default", p.Name)
		}
		if p.Default != "" {
			if _, err := p.Kind.canonical(p.Default); err != nil {
				return fmt.Errorf("parameter %q: default: %w", p.Name, err)
			}
		}
	}
	if mains > 1 {
		return fmt.Errorf("there is more than one main parameter")
	}
	return nil
}

// param returns a parameter's declaration, and its place.
func (e Element) param(key string) (int, bool) {
	for i, p := range e.Params {
		if p.Name == key {
			return i, true
		}
	}
	return 0, false
}

// main returns the main parameter's place, or -1.
func (e Element) main() int {
	for i, p := range e.Params {
		if p.Main {
			return i
		}
	}
	return -1
}

// isName reports whether s is made of lower-case letters, digits and hyphens,
// and begins with a letter.
func isName(s string) bool {
	for i, c := range []byte(s) {
		letter := 'a' <= c && c <= 'z'
		if !letter && (i == 0 || c != '-' && (c < '0' || c > '9')) {
			return false
		}
	}
	return s != ""
}

// WriteHelp writes what elements there are, with their parameters, for a person.
func (r *Registry) WriteHelp(w io.Writer) error {
	var b strings.Builder
	section := func(title string, list []Element) {
		fmt.Fprintf(&b, "%s:\n", title)
		for _, e := range list {
			fmt.Fprintf(&b, "  %-28s %s\n", e.Usage(), e.Summary)
			for _, p := range e.Params {
				fmt.Fprintf(&b, "      %-24s %s\n", p.Name+"="+p.Kind.String(), p.describe())
			}
		}
	}
	section("Back ends", r.Backends())
	section("Layers", r.Layers())
	_, err := io.WriteString(w, b.String())
	return err
}

// Usage returns the short form of an element, like "memory:SIZE".
func (e Element) Usage() string {
	i := e.main()
	if i < 0 {
		return e.Name
	}
	if e.Params[i].Required {
		return e.Name + ":" + strings.ToUpper(e.Params[i].Name)
	}
	return e.Name + "[:" + strings.ToUpper(e.Params[i].Name) + "]"
}

// describe returns the help of a parameter with what the declaration adds.
func (p Param) describe() string {
	s := p.Help
	if p.Required {
		s += " (required)"
	}
	if p.Default != "" {
		s += " (default " + p.Default + ")"
	}
	return s
}
