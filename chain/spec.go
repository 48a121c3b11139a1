package chain

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"

	"nbd.example/nbd/block"
)

// Spec is a chain that has been read and checked. It is never changed: what
// changes something returns a new Spec. Its methods may be called concurrently.
type Spec struct {
	registry *Registry
	backend  Backend
	args     Args
	layers   []layerSpec
}

type layerSpec struct {
	layer Layer
	args  Args
}

// newArgs returns the arguments of e with nothing given.
func newArgs(e Element) Args {
	n := len(e.Params)
	return Args{element: e, values: make([]string, n), given: make([]bool, n), seen: make([]bool, n)}
}

// set sets the i-th parameter.
func (a *Args) set(i int, v string) error {
	p := a.element.Params[i]
	v, err := p.Kind.canonical(v)
	if err != nil {
		return fmt.Errorf("%q: %s: %w", a.element.Name, p.Name, err)
	}
	standard := p.Kind.zero()
	if p.Default != "" {
		standard, _ = p.Kind.canonical(p.Default)
	}
	a.values[i], a.seen[i] = v, true
	a.given[i] = p.Required || v != standard
	return nil
}

// finish checks the whole.
func (a *Args) finish() error {
	for i, p := range a.element.Params {
		if p.Required && !a.seen[i] {
			return fmt.Errorf("%q needs %s (%s); write it like %q", a.element.Name, p.Name, p.Help, a.element.example(p))
		}
	}
	if a.element.Check != nil {
		if err := a.element.Check(*a); err != nil {
			return fmt.Errorf("%q: %w", a.element.Name, err)
		}
	}
	return nil
}

// clone returns a copy that can be changed.
func (a Args) clone() Args {
	a.values, a.given, a.seen = slices.Clone(a.values), slices.Clone(a.given), slices.Clone(a.seen)
	return a
}

// with returns a with some parameters set.
func (a Args) with(params map[string]string) (Args, error) {
	a = a.clone()
	for _, key := range slices.Sorted(maps.Keys(params)) {
		i, ok := a.element.param(key)
		if !ok {
			return a, errors.New(a.element.unknownParam(key))
		}
		if err := a.set(i, params[key]); err != nil {
			return a, err
		}
	}
	return a, a.finish()
}

// New returns the spec of a back end without layers. The values need no
// quoting.
func (r *Registry) New(backend string, params map[string]string) (*Spec, error) {
	b, ok := r.backend(backend)
	if !ok {
		return nil, fmt.Errorf("chain: unknown back end %s%s; back ends: %s", bounded(backend, 40), suggest(backend, r.Backends()), names(r.Backends()))
	}
	a, err := newArgs(b.Element).with(params)
	if err != nil {
		return nil, fmt.Errorf("chain: %w", err)
	}
	return &Spec{registry: r, backend: b, args: a}, nil
}

// File returns the spec of a file without layers. The path is not read as a
// text.
func (r *Registry) File(path string) (*Spec, error) {
	b, ok := r.backend(FileElement)
	main := b.main()
	if !ok || main < 0 {
		return nil, fmt.Errorf("chain: %s is a file, and there is no back end for files here; back ends: %s", bounded(path, 80), names(r.Backends()))
	}
	return r.New(FileElement, map[string]string{b.Params[main].Name: path})
}

// With returns s with one more layer on top. The values need no quoting.
func (s *Spec) With(layer string, params map[string]string) (*Spec, error) {
	l, ok := s.registry.layer(layer)
	if !ok {
		return nil, fmt.Errorf("chain: unknown layer %s%s; layers: %s", bounded(layer, 40), suggest(layer, s.registry.Layers()), names(s.registry.Layers()))
	}
	if len(s.layers)+1 >= maxElements {
		return nil, fmt.Errorf("chain: more than %d elements", maxElements)
	}
	a, err := newArgs(l.Element).with(params)
	if err != nil {
		return nil, fmt.Errorf("chain: %w", err)
	}
	c := *s
	c.layers = append(slices.Clip(s.layers), layerSpec{l, a})
	return &c, nil
}

// Set returns s with parameters of its back end set, in addition to those that it
// has, or instead of them. The values need no quoting.
func (s *Spec) Set(params map[string]string) (*Spec, error) {
	a, err := s.args.with(params)
	if err != nil {
		return nil, fmt.Errorf("chain: %w", err)
	}
	c := *s
	c.args = a
	return &c, nil
}

// Backend returns the name of the back end, and its arguments.
func (s *Spec) Backend() (name string, a Args) { return s.backend.Name, s.args }

// Layers returns the names of the layers, the lowest first.
func (s *Spec) Layers() []string {
	list := make([]string, len(s.layers))
	for i, l := range s.layers {
		list[i] = l.layer.Name
	}
	return list
}

// Path returns the path of the file at the bottom, if there is one.
func (s *Spec) Path() (path string, ok bool) {
	if s.backend.Name != FileElement {
		return "", false
	}
	return s.args.values[s.backend.main()], true
}

// Absolute returns s with every path that is relative to the folder dir made
// absolute.
func (s *Spec) Absolute(dir string) *Spec {
	c := *s
	c.args = s.args.absolute(dir)
	c.layers = slices.Clone(s.layers)
	for i := range c.layers {
		c.layers[i].args = c.layers[i].args.absolute(dir)
	}
	return &c
}

func (a Args) absolute(dir string) Args {
	a = a.clone()
	for i, p := range a.element.Params {
		if p.Kind == Path && a.given[i] && !filepath.IsAbs(a.values[i]) {
			a.values[i] = filepath.Join(dir, a.values[i])
		}
	}
	return a
}

// Open opens the back end and puts the layers over it. What it makes is new
// each time; closing it closes everything.
func (s *Spec) Open(ctx context.Context) (*block.Device, error) {
	layers := make([]block.Layer, len(s.layers))
	for i, l := range s.layers {
		var err error
		if layers[i], err = l.layer.Make(l.args); err != nil {
			return nil, fmt.Errorf("chain %s: layer %q: %w", bounded(s.String(), 120), l.layer.Name, err)
		}
	}
	b, err := s.backend.Open(ctx, s.args)
	if err != nil {
		return nil, fmt.Errorf("chain %s: back end %q: %w", bounded(s.String(), 120), s.backend.Name, err)
	}
	d, err := block.Stack(b, layers...)
	if err != nil {
		return nil, fmt.Errorf("chain %s: %w", bounded(s.String(), 120), err)
	}
	return d, nil
}

// String returns the canonical text: Parse makes an equal Spec of it, and two
// Specs that mean the same have the same text.
func (s *Spec) String() string {
	var b strings.Builder
	s.args.write(&b)
	for _, l := range s.layers {
		b.WriteString(" | ")
		l.args.write(&b)
	}
	return b.String()
}

// write writes the canonical text of an element: the main parameter, then the
// others as they are declared.
func (a Args) write(b *strings.Builder) {
	b.WriteString(a.element.Name)
	sep := byte(':')
	main := a.element.main()
	if main >= 0 && a.given[main] {
		b.WriteByte(sep)
		sep = ','
		writeValue(b, a.values[main], a.element.looksLikeKey(a.values[main]))
	}
	for i, p := range a.element.Params {
		if i != main && a.given[i] {
			b.WriteByte(sep)
			sep = ','
			b.WriteString(p.Name)
			b.WriteByte('=')
			writeValue(b, a.values[i], false)
		}
	}
}

// looksLikeKey reports whether a main value would be taken for a key and a
// value.
func (e Element) looksLikeKey(v string) bool {
	key, _, ok := strings.Cut(v, "=")
	if !ok || !isName(key) {
		return false
	}
	_, known := e.param(key)
	return known || !e.Params[e.main()].Verbatim
}

// writeValue writes a value, in quotes if it must be.
func writeValue(b *strings.Builder, v string, quote bool) {
	if !quote && v != "" && v[0] != ':' && !strings.ContainsAny(v, `,"|`) && !strings.Contains(v, "::") && strings.Trim(v, white) == v {
		b.WriteString(v)
		return
	}
	b.WriteByte('"')
	b.WriteString(strings.NewReplacer(`\`, `\\`, `"`, `\"`).Replace(v))
	b.WriteByte('"')
}
