package chain

import (
	"context"
	"errors"
	"strings"
	"testing"

	"nbd.example/nbd/block"
)

// zeroes is a back end of nothing but zeroes.
type zeroes struct{ size int64 }

func (z zeroes) Caps() block.Caps { return block.Caps{Size: z.size} }
func (z zeroes) ReadAt(_ context.Context, p []byte, _ int64) error {
	clear(p)
	return nil
}
func (z zeroes) Close() error { return nil }

// testRegistry has elements with parameters of all kinds. Files called "there",
// "a::b", "x | y" and "memory:1" exist.
func testRegistry() *Registry {
	r := &Registry{Exists: func(path string) bool {
		return path == "there" || path == "a::b" || path == "x | y" || path == "memory:1"
	}}
	open := func(context.Context, Args) (block.Backend, error) { return zeroes{1 << 20}, nil }
	same := func(Args) (block.Layer, error) {
		return func(next *block.Device) (block.Backend, error) { return zeroes{next.Size()}, next.Close() }, nil
	}
	r.Backend(Backend{Element: Element{Name: "file", Summary: "a file", Params: []Param{
		{Name: "path", Kind: Path, Main: true, Required: true, Help: "the file"},
		{Name: "direct", Kind: Bool, Help: "no cache"},
	}}, Open: open})
	r.Backend(Backend{Element: Element{Name: "memory", Summary: "memory", Params: []Param{
		{Name: "size", Kind: Size, Main: true, Required: true, Help: "its size"},
	}}, Open: open})
	r.Backend(Backend{Element: Element{Name: "null", Params: []Param{{Name: "size", Kind: Size, Main: true, Default: "1024k"}}}, Open: open})
	r.Layer(Layer{Element: Element{Name: "readonly"}, Make: same})
	r.Layer(Layer{Element: Element{Name: "cow", Params: []Param{
		{Name: "dir", Kind: Path}, {Name: "sparse", Kind: Bool}, {Name: "keep", Kind: Bool, Default: "true"},
	}}, Make: same})
	r.Layer(Layer{Element: Element{Name: "delay", Params: []Param{
		{Name: "all", Kind: Duration, Main: true}, {Name: "read", Kind: Duration},
	}}, Make: same})
	r.Layer(Layer{Element: Element{Name: "fault", Params: []Param{
		{Name: "rules", Kind: Text, Main: true, Verbatim: true}, {Name: "seed", Kind: Number},
	}, Check: func(a Args) error {
		if strings.Contains(a.Text("rules"), "EVIL") {
			return errors.New("rules are evil")
		}
		return nil
	}}, Make: same})
	return r
}

func TestParse(t *testing.T) {
	for _, x := range []struct{ text, want string }{
		// files
		{"/srv/disk.img", "file:/srv/disk.img"},
		{"  /srv/my disk.img ", "file:/srv/my disk.img"},
		{"./d,1=2", `file:"./d,1=2"`},
		{"../a=b", "file:../a=b"},
		{`C:\disk.img`, `file:C:\disk.img`},
		{`c:/disk.img`, `file:c:/disk.img`},
		{"there", "file:there"},
		{"a::b", `file:"a::b"`},
		{"x | y", `file:"x | y"`},
		{"memory:1", "file:memory:1"},
		{"there::readonly", "file:there | readonly"},
		{"there | readonly", "file:there | readonly"},
		{`"not there"`, "file:not there"},
		{`"a \"b\" \\ | c"::readonly`, `file:"a \"b\" \\ | c" | readonly`},
		{"/srv/a,b|c", `file:"/srv/a,b|c"`},
		{"/srv/[a::b]", `file:"/srv/[a::b]"`},
		// elements
		{"memory:1G", "memory:1G"},
		{"memory:size=1024M", "memory:1G"},
		{"memory:0", "memory:0"},
		{"null", "null"},
		{"null:1M", "null"},
		{"null:2m", "null:2M"},
		{"null:", "null"},
		{`file:"/a,b",direct`, `file:"/a,b",direct=true`},
		{"file:/a , direct=on", "file:/a,direct=true"},
		{"file:direct", "file:direct"},
		{"file:path=a=b", `file:"a=b"`},
		{`file:"a=b"`, `file:"a=b"`},
		{`file:":"`, `file:":"`},
		{"file:/a=b", "file:/a=b"},
		{`file:a"b`, `file:"a\"b"`},
		// layers
		{"memory:1M|readonly", ""},
		{"null | readonly", "null | readonly"},
		{"null::readonly::cow:dir=/tmp,sparse=no", "null | readonly | cow:dir=/tmp"},
		{"null\t|\n cow:sparse", "null | cow:sparse=true"},
		{"null | cow:keep=yes", "null | cow"},
		{"null | cow:keep=0", "null | cow:keep=false"},
		{"null | cow:dir=/a::readonly", "null | cow:dir=/a | readonly"},
		{"null | delay:10ms,read=1500ms", "null | delay:10ms,read=1.5s"},
		{"null | delay:read=0", "null | delay"},
		{"null | fault:read@4096+512=EIO", "null | fault:read@4096+512=EIO"},
		{"null | fault:read=EIO, write=EIO,seed=7", `null | fault:"read=EIO,write=EIO",seed=7`},
		{"null | fault:seed=7", "null | fault:seed=7"},
		{"null | fault:seed=7,read=EIO", "null | fault:read=EIO,seed=7"},
		{`null | fault:"seed=7"`, `null | fault:"seed=7"`},
	} {
		s, err := testRegistry().Parse(x.text)
		if x.want == "" {
			if err == nil {
				t.Errorf("Parse(%q) = %q, want an error", x.text, s)
			}
			continue
		}
		if err != nil {
			t.Errorf("Parse(%q): %v", x.text, err)
			continue
		}
		if got := s.String(); got != x.want {
			t.Errorf("Parse(%q) = %q, want %q", x.text, got, x.want)
		}
		checkRoundTrip(t, s)
	}
}

// checkRoundTrip wants the canonical text to mean the same.
func checkRoundTrip(t *testing.T, s *Spec) {
	t.Helper()
	r := *s.registry
	r.Exists = func(string) bool { return false }
	again, err := r.Parse(s.String())
	if err != nil {
		t.Fatalf("the canonical text %q cannot be read: %v", s, err)
	}
	if again.String() != s.String() {
		t.Fatalf("the canonical text %q becomes %q", s, again)
	}
}

func TestParseErrors(t *testing.T) {
	for _, x := range []struct {
		text string
		pos  int
		want string // a part of the message
	}{
		{"", 0, "it is empty"},
		{"  ", 0, "it is empty"},
		{"memroy:1G", 0, `unknown back end "memroy", and no file of that name; did you mean "memory"?; back ends: file, memory, null`},
		{"disk.img", 0, "a file that does not exist yet is written ./NAME"},
		{"cow", 0, `"cow" is a layer`},
		{"memory", 0, `"memory" needs size (its size); write it like "memory:1G"`},
		{"memory:", 0, `"memory" needs size`},
		{"memory:1X", 7, `"memory": size: "1X" is not a size`},
		{"memory:siez=1G", 7, `unknown parameter "siez"; did you mean "size"?; its parameters: size`},
		{"memory:1G,size=2G", 10, `parameter "size" is given twice`},
		{"memory:1G,2G", 10, `unexpected "2G"`},
		{"memory:1G,", 10, `unexpected ""`},
		{"memory:1G |cow", 7, "is not a size"},
		{"memory:1G | ", 11, "the layer's name is missing; layers: readonly, cow, delay, fault"},
		{"memory:1G |  | cow", 13, "the layer's name is missing"},
		{"memory:1G::", 11, "the layer's name is missing"},
		{"memory:1G::readolny", 11, `unknown layer "readolny"; did you mean "readonly"?`},
		{"memory:1G | null", 12, `"null" is a back end, and only the first`},
		{"memory:1G | readonly:x", 21, `"readonly" has no parameters`},
		{"null | cow:dir=", 11, "the path is empty"},
		{"null | cow:/tmp", 11, "its parameters: dir, sparse, keep"},
		{"null | delay:10", 13, "is not a duration"},
		{"null | delay:-1s", 13, "is not a duration"},
		{"null | cow:sparse=maybe", 11, "is not a switch"},
		{"null | fault:x,seed=-1", 15, "is not a whole number"},
		{"null | fault:EVIL", 7, `"fault": rules are evil`},
		{`"abc`, 0, "does not end"},
		{`"a\b"`, 2, `a backslash is written \\`},
		{`"a"b`, 3, `unexpected "b"`},
		{`file:"a"b`, 8, `unexpected "b" after the closing quote`},
		{"file:a\x00b", 5, "zero byte"},
		{strings.Repeat("x", maxText+1), 0, "at most 65536"},
		{"null" + strings.Repeat("::readonly", 64), 4 + 63*10 + 2, "more than 64"},
	} {
		s, err := testRegistry().Parse(x.text)
		if err == nil {
			t.Errorf("Parse(%.80q) = %q, want an error", x.text, s)
			continue
		}
		var e *Error
		if !errors.As(err, &e) {
			t.Errorf("Parse(%.80q): %T, want *Error", x.text, err)
			continue
		}
		if e.Pos != x.pos || !strings.Contains(e.Msg, x.want) {
			t.Errorf("Parse(%.80q): at %d: %s\nwant at %d: …%s…", x.text, e.Pos, e.Msg, x.pos, x.want)
		}
		if len(err.Error()) > 1000 {
			t.Errorf("Parse(%.80q): the error has %d bytes", x.text, len(err.Error()))
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{
		"/srv/disk.img | cow:dir=/tmp", `"a \" b"::readonly`, "memory:1G::delay:10ms,read=1s", "null|cow", `C:\x`,
		`file:"a,b",direct | fault:read@4096+512=EIO,write:3=ENOSPC,seed=5`, "a[::1] | x", "there::cow:sparse,keep=no",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		s, err := testRegistry().Parse(text)
		var e *Error
		switch {
		case err == nil:
			checkRoundTrip(t, s)
		case !errors.As(err, &e) || e.Pos < 0 || e.Pos > len(text):
			t.Fatalf("Parse(%q): %#v", text, err)
		}
	})
}
