package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// events of two packages: one test with two subtests, one of them skipped, and a
// test that passes.
const good = `{"Action":"start","Package":"m/a"}
{"Action":"run","Package":"m/a","Test":"TestX"}
{"Action":"run","Package":"m/a","Test":"TestX/one"}
{"Action":"output","Package":"m/a","Test":"TestX/one","Output":"    x_test.go:9: quiet\n"}
{"Action":"output","Package":"m/a","Test":"TestX/one","Output":"    x_test.go:10: in the machine: MEASURED: 3 ms, worst 4 ms\n"}
{"Action":"pass","Package":"m/a","Test":"TestX/one","Elapsed":0.1}
{"Action":"run","Package":"m/a","Test":"TestX/two"}
{"Action":"output","Package":"m/a","Test":"TestX/two","Output":"=== RUN   TestX/two\n"}
{"Action":"output","Package":"m/a","Test":"TestX/two","Output":"    x_test.go:12: needs the program p\n"}
{"Action":"skip","Package":"m/a","Test":"TestX/two"}
{"Action":"pass","Package":"m/a","Test":"TestX"}
{"Action":"output","Package":"m/a","Output":"PASS\n"}
{"Action":"output","Package":"m/a","Output":"ok  \tm/a\t0.1s\n"}
{"Action":"pass","Package":"m/a"}
{"Action":"run","Package":"m/b","Test":"TestY"}
{"Action":"pass","Package":"m/b","Test":"TestY"}
{"Action":"output","Package":"m/b","Output":"ok  \tm/b\t0.2s\n"}
{"Action":"pass","Package":"m/b"}
`

// report runs the program over events, with must as the text of the -must file.
func report(t *testing.T, events, must, only string) (string, error) {
	t.Helper()
	file := ""
	if must != "" {
		file = filepath.Join(t.TempDir(), "must")
		if err := os.WriteFile(file, []byte(must), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var out strings.Builder
	err := run(strings.NewReader(events), &out, options{must: file, only: only})
	return out.String(), err
}

// failing are the events of a test that fails.
const failing = `{"Action":"run","Package":"m/c","Test":"TestZ"}
{"Action":"output","Package":"m/c","Test":"TestZ","Output":"    z_test.go:1: loud\n"}
{"Action":"fail","Package":"m/c","Test":"TestZ"}
{"Action":"fail","Package":"m/c"}
`

func TestReport(t *testing.T) {
	for _, c := range []struct {
		name, events, must, only string
		err                      string // "" for success
		says                     []string
	}{
		{name: "good", events: good, says: []string{
			"ok  \tm/a\t0.1s\n", "measured: TestX/one: 3 ms, worst 4 ms\n", "  needs the program p\n      m/a TestX/two\n", "\n2 passed, 0 failed, 1 skipped\n",
		}},
		{name: "must", events: good, must: "# list\n\na TestX/one\nb Test*\n"},
		{name: "must, skipped", events: good, must: "a TestX/*\n", err: "must run", says: []string{"TestX/two was skipped: needs"}},
		{name: "must, absent", events: good, must: "b TestQ\n", err: "must run", says: []string{"b TestQ: no such test passed"}},
		{name: "must, elsewhere", events: good, must: "z/y TestQ\n", only: "x"},
		{name: "must, by names", events: good, must: "a TestX/ one thr*\n", err: "must run", says: []string{"a TestX/thr*: no such test passed\n"}},
		{name: "bad list", events: good, must: "b\n", err: "line 1"},
		{name: "no names", events: good, must: "a TestX/\n", err: "line 1"},
		{name: "names of nothing", events: good, must: "a TestX one\n", err: "line 1"},
		{name: "failed", events: good + failing, err: "tests failed", says: []string{"z_test.go:1: loud", "2 passed, 1 failed, 1 skipped"}},
		{name: "package failed", events: good + `{"Action":"fail","Package":"m/d"}`, err: "tests failed"},
		{name: "build failed", events: `{"ImportPath":"m/d","Action":"build-output","Output":"d.go:1: bad\n"}` + "\n" + `{"Action":"fail","Package":"m/d"}`, err: "tests failed", says: []string{"d.go:1: bad"}},
		{name: "cut", events: good + `{"Action":"run","Package":"m/c","Test":"TestZ"}`, err: "events end"},
		{name: "nothing", events: "", err: "no test ran"},
		{name: "no event", events: "go: no such module\n", err: "no test ran", says: []string{"go: no such module"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			out, err := report(t, c.events, c.must, c.only)
			if (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
				t.Errorf("error %v, want %q", err, c.err)
			}
			for _, s := range c.says {
				if !strings.Contains(out, s) {
					t.Errorf("does not say %q:\n%s", s, out)
				}
			}
			if strings.Contains(out, "quiet") {
				t.Errorf("shows what a test that passed said:\n%s", out)
			}
		})
	}
}

// What failed is said again at the end, where it is found.
func TestQuietFailed(t *testing.T) {
	var out strings.Builder
	if err := run(strings.NewReader(good+failing), &out, options{quiet: true}); err == nil {
		t.Error("no error")
	}
	for _, want := range []string{"failed: m/", "    z_test.go:1: loud\n"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("does not say %q:\n%s", want, out.String())
		}
	}
}

func TestQuiet(t *testing.T) {
	var out strings.Builder
	if err := run(strings.NewReader(good), &out, options{quiet: true}); err != nil {
		t.Error(err)
	}
	if got, want := out.String(), "2 passed, 0 failed, 1 skipped\n"; got != want {
		t.Errorf("says %q, want %q", got, want)
	}
}
