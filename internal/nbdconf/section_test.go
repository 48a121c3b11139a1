package nbdconf

import (
	"maps"
	"strings"
	"testing"
)

// TestNewExport makes exports of keys, and keys of exports again.
func TestNewExport(t *testing.T) {
	c := &Config{}
	keys := map[string]string{
		"exportname": " /a \\ b", "readonly": "true", "flush": "false", "filesize": "4096", "maxconnections": "3",
		"transactionlog": "/log", "datalog": "true", "authfile": "/auth\n",
	}
	x, problems := c.NewExport("x y", keys, "here")
	if len(problems) != 1 || problems[0].Severity != Warning || problems[0].Pos.String() != "here" { // flush = false
		t.Errorf("%v", problems)
	}
	if x.Name != "x y" || x.ExportName != " /a \\ b" || !x.ReadOnly || x.Flush != False || x.FileSize != 4096 || x.TransactionLog != "/log" || x.AuthFile != "/auth\n" {
		t.Errorf("%+v", x)
	}
	if got := x.Values(); !maps.Equal(got, keys) {
		t.Errorf("%q, want %q", got, keys)
	}
	var text strings.Builder
	if err := WriteValues(&text, "x y", keys); err != nil {
		t.Fatal(err)
	}
	file, problems := ParseKeyFile("x", []byte(text.String()))
	again := map[string]string{}
	for _, e := range file.Groups[0].Entries {
		again[e.Key], _ = unescape(e.Value)
	}
	if len(problems) > 0 || !maps.Equal(again, keys) || !strings.HasPrefix(text.String(), "[x y]\n\texportname = \\s/a ") {
		t.Errorf("%v, %s", problems, text.String())
	}
}

func TestNewExportProblems(t *testing.T) {
	c := &Config{Generic: Generic{OldStyle: true}}
	for _, x := range []struct {
		name string
		keys map[string]string
		want string
	}{
		{"x", nil, "lacks exportname"},
		{"x", map[string]string{"exportname": "/a", "readonlyy": "true"}, `did you mean "readonly"?`},
		{"x", map[string]string{"exportname": "/a", "readonly": "yes"}, "is not a boolean"},
		{"x", map[string]string{"exportname": "/a", "force_tls": "true"}, "without keyfile"},
		{"x", map[string]string{"exportname": "/a", "user": "me"}, "belongs in [generic]"},
		{"x", map[string]string{"exportname": "/a", "a[b": "c"}, "holds what a key must not hold"},
		{"x", map[string]string{"exportname": "/a", "": "c"}, "holds what a key must not hold"},
		{"x", map[string]string{"exportname": "/a", "port": "1", "force_tls": "true"}, "know no TLS"},
		{"generic", map[string]string{"exportname": "/a"}, "cannot be called generic"},
		{"a]b", map[string]string{"exportname": "/a"}, "holds a bracket"},
	} {
		_, problems := c.NewExport(x.name, x.keys, "here")
		if bad := problems.Errors(Unknown); len(bad) == 0 || !strings.Contains(bad.Error(), x.want) {
			t.Errorf("%s %q: %v, want %q", x.name, x.keys, problems, x.want)
		}
	}
}
