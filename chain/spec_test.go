package chain

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"testing"

	"nbd.example/nbd/block"
)

func mustParse(t *testing.T, r *Registry, text string) *Spec {
	t.Helper()
	s, err := r.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestSpecChanges(t *testing.T) {
	r := testRegistry()
	s := mustParse(t, r, "./a.img | cow:dir=tmp")
	before := s.String()

	abs := s.Absolute("/srv")
	if want := "file:" + filepath.Join("/srv", "a.img") + " | cow:dir=" + filepath.Join("/srv", "tmp"); abs.String() != want {
		t.Errorf("Absolute: %q, want %q", abs, want)
	}
	if again := abs.Absolute("/other"); again.String() != abs.String() {
		t.Errorf("Absolute changed absolute paths: %q", again)
	}
	direct, err := s.Set(map[string]string{"direct": "yes"})
	if err != nil || direct.String() != "file:./a.img,direct=true | cow:dir=tmp" {
		t.Errorf("Set: %q, %v", direct, err)
	}
	one, err1 := s.With("readonly", nil)
	two, err2 := s.With("cow", map[string]string{"dir": "a,b", "sparse": "1"})
	if err1 != nil || err2 != nil {
		t.Fatal(err1, err2)
	}
	if want := before + " | readonly"; one.String() != want {
		t.Errorf("With: %q, want %q", one, want)
	}
	if want := before + ` | cow:dir="a,b",sparse=true`; two.String() != want {
		t.Errorf("With: %q, want %q", two, want)
	}
	if s.String() != before {
		t.Errorf("the spec itself became %q", s)
	}
	if path, ok := s.Path(); !ok || path != "./a.img" {
		t.Errorf("Path: %q, %v", path, ok)
	}
	if _, ok := mustParse(t, r, "null").Path(); ok {
		t.Error("null has a path")
	}
	if got := strings.Join(two.Layers(), " "); got != "cow cow" {
		t.Errorf("Layers: %q", got)
	}
	if name, a := s.Backend(); name != "file" || a.Text("path") != "./a.img" || a.Given("direct") {
		t.Errorf("Backend: %q, %v", name, a)
	}
}

func TestSpecChangeErrors(t *testing.T) {
	r := testRegistry()
	s := mustParse(t, r, "null")
	_, set := s.Set(map[string]string{"seiz": "1"})
	_, value := s.Set(map[string]string{"size": "x"})
	_, with := s.With("coww", nil)
	_, param := s.With("cow", map[string]string{"dri": "x"})
	_, check := s.With("fault", map[string]string{"rules": "EVIL"})
	_, backend := r.New("nul", nil)
	_, required := r.New("memory", nil)
	for _, x := range []struct {
		err  error
		want string
	}{
		{set, `did you mean "size"?`}, {value, "not a size"}, {with, `did you mean "cow"?`}, {param, `did you mean "dir"?`},
		{check, "evil"}, {backend, `did you mean "null"?`}, {required, "needs size"},
	} {
		if x.err == nil || !strings.Contains(x.err.Error(), x.want) {
			t.Errorf("error %v, want one with %q", x.err, x.want)
		}
	}
}

// closing counts how often a back end is closed.
type closing struct {
	zeroes
	closed *int
}

func (c closing) Close() error {
	*c.closed++
	return nil
}

func TestOpen(t *testing.T) {
	closed, opened := 0, 0
	broken := errors.New("broken")
	r := testRegistry()
	r.Backend(Backend{Element: Element{Name: "counted"}, Open: func(context.Context, Args) (block.Backend, error) {
		opened++
		return closing{zeroes{4096}, &closed}, nil
	}})
	r.Backend(Backend{Element: Element{Name: "broken"}, Open: func(context.Context, Args) (block.Backend, error) { return nil, broken }})
	r.Layer(Layer{Element: Element{Name: "unmade"}, Make: func(Args) (block.Layer, error) { return nil, broken }})
	r.Layer(Layer{Element: Element{Name: "unstacked"}, Make: func(Args) (block.Layer, error) {
		return func(*block.Device) (block.Backend, error) { return nil, broken }, nil
	}})
	for text, wantOpened := range map[string]int{"broken": 0, "counted::unmade": 0, "counted::unstacked": 1} {
		opened, closed = 0, 0
		_, err := mustParse(t, r, text).Open(t.Context())
		if !errors.Is(err, broken) || opened != wantOpened || closed != opened {
			t.Errorf("%s: error %v, opened %d times, closed %d times", text, err, opened, closed)
		}
	}
	opened, closed = 0, 0
	s := mustParse(t, r, "counted")
	for range 2 {
		d, err := s.Open(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if d.Size() != 4096 {
			t.Errorf("size %d", d.Size())
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if opened != 2 || closed != 2 {
		t.Errorf("opened %d times, closed %d times, want 2 and 2", opened, closed)
	}
}

// TestDeclarations: mistakes of the program are found when it starts.
func TestDeclarations(t *testing.T) {
	open := func(context.Context, Args) (block.Backend, error) { return zeroes{}, nil }
	for name, e := range map[string]Element{
		"short":     {Name: "x"},
		"letters":   {Name: "Foo"},
		"twice":     {Name: "null"},
		"key":       {Name: "foo", Params: []Param{{Name: "a b"}}},
		"keys":      {Name: "foo", Params: []Param{{Name: "aa"}, {Name: "aa"}}},
		"mains":     {Name: "foo", Params: []Param{{Name: "aa", Main: true}, {Name: "bb", Main: true}}},
		"verbatim":  {Name: "foo", Params: []Param{{Name: "aa", Verbatim: true}}},
		"default":   {Name: "foo", Params: []Param{{Name: "aa", Kind: Size, Default: "x"}}},
		"pointless": {Name: "foo", Params: []Param{{Name: "aa", Default: "x", Required: true}}},
	} {
		t.Run(name, func(t *testing.T) {
			defer func() {
				if recover() == nil {
					t.Error("no panic")
				}
			}()
			testRegistry().Backend(Backend{Element: e, Open: open})
		})
	}
}

func TestHelp(t *testing.T) {
	r := testRegistry()
	var b strings.Builder
	if err := r.WriteHelp(&b); err != nil {
		t.Fatal(err)
	}
	for _, e := range append(r.Backends(), r.Layers()...) {
		if !strings.Contains(b.String(), "  "+e.Usage()) {
			t.Errorf("the help does not have %q", e.Usage())
		}
		for _, p := range e.Params {
			if !strings.Contains(b.String(), "      "+p.Name+"="+p.Kind.String()) {
				t.Errorf("the help does not have parameter %q of %q", p.Name, e.Name)
			}
		}
	}
	if !strings.Contains(b.String(), "(default 1024k)") || !strings.Contains(b.String(), "(required)") {
		t.Errorf("the help has no defaults:\n%s", &b)
	}
}
