package nbdconf

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"nbd.example/nbd/internal/opener"
)

var update = flag.Bool("update", false, "write the golden files anew")

var severities = map[Severity]string{Warning: "warning", Unknown: "unknown", Error: "error"}

// TestLoad compares what is understood of each file in testdata, and what is
// said about it, with a golden file.
func TestLoad(t *testing.T) {
	names, err := filepath.Glob("testdata/*.conf")
	if err != nil || len(names) < 10 {
		t.Fatalf("found %d files, %v", len(names), err)
	}
	for _, name := range names {
		t.Run(filepath.Base(name), func(t *testing.T) {
			c, problems, err := Load(opener.OS{}, filepath.ToSlash(name))
			var b bytes.Buffer
			if err != nil {
				fmt.Fprintf(&b, "failed: %v\n", err)
			}
			for _, p := range problems {
				fmt.Fprintf(&b, "%s (column %d): %s\n", severities[p.Severity], p.Pos.Col, p.Error())
			}
			if err := c.WriteJSON(&b); err != nil {
				t.Fatal(err)
			}
			golden(t, strings.TrimSuffix(name, ".conf")+".golden", b.Bytes())
		})
	}
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	if *update {
		if err := os.WriteFile(name, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("differs from %s (-update writes it anew), got:\n%s", name, got)
	}
}

func TestMissing(t *testing.T) {
	_, _, err := Load(opener.OS{}, filepath.Join(t.TempDir(), "none"))
	if !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Load of a missing file = %v, want one that says so", err)
	}
	_, _, err = Load(opener.OS{}, "testdata/empty.conf")
	if !errors.Is(err, ErrEmpty) {
		t.Errorf("Load of an empty file = %v, want ErrEmpty", err)
	}
}

// TestDumpRoundTrip reads what WriteKeyFile writes and finds the same again.
func TestDumpRoundTrip(t *testing.T) {
	c, problems, err := Load(opener.OS{}, "testdata/all.conf")
	if err != nil || problems.Err() != nil {
		t.Fatal(err, problems)
	}
	var text bytes.Buffer
	if err := c.WriteKeyFile(&text); err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(t.TempDir(), "again.conf")
	if err := os.WriteFile(name, text.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	again, problems, err := Load(opener.OS{}, name)
	if err != nil || len(problems.Errors(Unknown)) > 0 {
		t.Fatalf("%v %v in\n%s", err, problems, text.Bytes())
	}
	if a, b := bare(t, c), bare(t, again); a != b {
		t.Errorf("read again:\n%s\nwant:\n%s", b, a)
	}
}

// bare is c as JSON without places.
func bare(t *testing.T, c *Config) string {
	t.Helper()
	c.Files = nil
	for _, x := range c.Exports {
		x.Pos = Pos{}
	}
	var b bytes.Buffer
	if err := c.WriteJSON(&b); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestHint(t *testing.T) {
	for _, c := range []struct {
		key     string
		generic bool
		want    string
	}{
		{"trimm", false, "trim"},
		{"read_only", false, "readonly"},
		{"Read-Only", false, "readonly"},
		{"copy-on-write", false, "copyonwrite"},
		{"flsuh", false, "flush"},
		{"prot", true, "port"},
		{"forcetls", true, "force_tls"},
		{"allow_list", true, "allowlist"},
		{"include_dir", true, "includedir"},
		{"xyzzy", true, ""},
		{strings.Repeat("trim", 1000), false, ""},
	} {
		want := ""
		if c.want != "" {
			want = fmt.Sprintf("; did you mean %q?", c.want)
		}
		if got := hint(c.key, c.generic); got != want {
			t.Errorf("%.20q, %v: %q, want %q", c.key, c.generic, got, want)
		}
	}
}

// TestKeys checks the table itself: sorted, and each key either has a field of
// its kind or is said to have no effect.
func TestKeys(t *testing.T) {
	for _, generic := range []bool{true, false} {
		last := ""
		for _, k := range Keys(generic) {
			if k.Name <= last {
				t.Errorf("%q does not come after %q", k.Name, last)
			}
			last = k.Name
			if k.Help == "" {
				t.Errorf("%s has no help", k.Name)
			}
			if (k.field != nil) != (k.Status == Supported) {
				t.Errorf("%s: has a field: %v, but its status is %v", k.Name, k.field != nil, k.Status)
			}
			if k.field == nil {
				continue
			}
			ok := false
			switch k.field(&Generic{}, &Export{}).(type) {
			case *string:
				ok = k.Kind == String
			case *bool, *Tri:
				ok = k.Kind == Bool
			case *int:
				ok = k.Kind == Int
			case *int64:
				ok = k.Kind == Size
			case *[]string:
				ok = k.Kind == List
			}
			if !ok {
				t.Errorf("%s: its field is not of kind %v", k.Name, k.Kind)
			}
		}
	}
}

// FuzzParse feeds the parser with text, and what it understood back to it.
func FuzzParse(f *testing.F) {
	names, _ := filepath.Glob("testdata/*.conf")
	for _, name := range names {
		if b, err := os.ReadFile(name); err == nil {
			f.Add(b)
		}
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		file, problems := ParseKeyFile("f", text)
		for _, p := range problems {
			if p.Pos.Line < 1 || p.Pos.Col < 1 || p.Text == "" {
				t.Errorf("a problem without a place or a text: %+v", p)
			}
		}
		l := loader{open: nowhere{}, config: &Config{Files: []string{"f"}}}
		l.main(file)
		l.include()
		l.checkAll()
		for _, x := range l.config.Exports {
			if len(l.problems.Errors(Error)) > 0 || strings.Contains(x.ExportName, "\r") {
				continue
			}
			checkAgain(t, x)
		}
	})
}

// checkAgain writes x and reads it again.
func checkAgain(t *testing.T, x *Export) {
	var b bytes.Buffer
	if err := x.WriteSection(&b); err != nil {
		t.Fatal(err)
	}
	file, problems := ParseKeyFile("again", b.Bytes())
	l := loader{open: nowhere{}, config: &Config{}}
	l.config.Generic.KeyFile = "key"
	if problems != nil || len(file.Groups) != 1 {
		t.Fatalf("cannot read again: %v\n%s", problems, b.Bytes())
	}
	l.export(file.Groups[0])
	got := l.config.Exports[0]
	if wrote, read := values(exportKeys, nil, x), values(exportKeys, nil, got); got.Name != x.Name || !reflect.DeepEqual(wrote, read) {
		t.Errorf("wrote %v, read %v", wrote, read)
	}
	addr := &net.TCPAddr{IP: net.IPv6loopback}
	if a, b := x.Virtual().Expand(x.ExportName, addr), got.Virtual().Expand(got.ExportName, addr); a != b {
		t.Errorf("the file for a client was %q, is %q", a, b)
	}
}

// nowhere is an Opener without files.
type nowhere struct{ opener.Opener }

func (nowhere) ReadDir(name string) ([]fs.DirEntry, error) { return nil, fs.ErrNotExist }
