package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"nbd.example/nbd/internal/clientflags"
	"nbd.example/nbd/internal/nbdconf"
	"nbd.example/nbd/internal/serverflags"
	"nbd.example/nbd/internal/testgate"
)

// TestCommitted fails if the pages in the folder man are not those that the
// tables make.
func TestCommitted(t *testing.T) {
	for name, page := range pages {
		got, err := os.ReadFile(filepath.Join("..", "..", "man", name))
		if err != nil {
			t.Error(err)
			continue
		}
		if strings.ReplaceAll(string(got), "\r\n", "\n") != page() {
			t.Errorf("man/%s is not what the tables make; run: go run ./internal/genman", name)
		}
	}
}

// terms returns the terms that the committed page explains in a section.
func terms(t *testing.T, page, section string) []string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", "..", "man", page))
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(text), ".SH \""+section+"\"\n")
	if !ok {
		t.Fatalf("%s has no section %s", page, section)
	}
	rest, _, _ = strings.Cut(rest, ".SH ")
	var list []string
	for _, m := range regexp.MustCompile(`(?m)^\.TP\n\\fB(.*)\\fR$`).FindAllStringSubmatch(rest, -1) {
		list = append(list, strings.ReplaceAll(m[1], `\-`, "-"))
	}
	return list
}

// TestServerPage: the page of the server names what no table knows of.
func TestServerPage(t *testing.T) {
	for _, c := range serverflags.ServiceCommands {
		if !slices.Contains(terms(t, "nbd-server.8", "WINDOWS"), c.Form) {
			t.Errorf("the page lacks %q", c.Form)
		}
	}
	page := server8()
	for _, want := range []string{"waitfile", "oldstyle@EXPORT", "nbd\\-ctl(1)"} {
		if !strings.Contains(page, want) {
			t.Errorf("the page lacks %s", want)
		}
	}
	if strings.Contains(page, "Ignored.") {
		t.Error("the page says of a signal that it is ignored")
	}
}

// TestAgree compares pages, help and tables, both ways.
func TestAgree(t *testing.T) {
	var help strings.Builder
	if err := serverflags.WriteHelp(&help); err != nil {
		t.Fatal(err)
	}
	var options []string
	for _, o := range serverflags.Options() {
		options = append(options, o.Forms())
	}
	if got := terms(t, "nbd-server.8", "OPTIONS"); !slices.Equal(got, options) {
		t.Errorf("nbd-server.8 explains %q, the table has %q", got, options)
	}
	var helped []string
	for _, m := range regexp.MustCompile(`(?m)^  (-.*)$`).FindAllStringSubmatch(help.String(), -1) {
		helped = append(helped, m[1])
	}
	if !slices.Equal(helped, options) {
		t.Errorf("--help explains %q, the table has %q", helped, options)
	}
	for section, generic := range map[string]bool{"KEYS OF [GENERIC]": true, "KEYS OF AN EXPORT": false} {
		var names []string
		for _, k := range nbdconf.Keys(generic) {
			names = append(names, k.Name)
		}
		if got := terms(t, "nbd-server.5", section); !slices.Equal(got, names) {
			t.Errorf("nbd-server.5, %s, explains %q, the table has %q", section, got, names)
		}
	}
}

// TestClientAgrees compares the pages of nbd-client, its help and its tables.
func TestClientAgrees(t *testing.T) {
	var help strings.Builder
	if err := clientflags.WriteHelp(&help); err != nil {
		t.Fatal(err)
	}
	var options, keys []string
	for _, o := range clientflags.Options() {
		switch {
		case o.Hidden:
		case o.Takes(clientflags.Attach):
			options = append(options, o.Forms())
		case !strings.Contains(help.String(), "        "+o.Forms()+": "):
			t.Errorf("--help does not explain %s", o.Forms())
		}
	}
	if got := terms(t, "nbd-client.8", "OPTIONS"); !slices.Equal(got, options) {
		t.Errorf("nbd-client.8 explains %q, the table has %q", got, options)
	}
	var helped, commands []string
	for _, m := range regexp.MustCompile(`(?m)^  (-.*)$`).FindAllStringSubmatch(help.String(), -1) {
		helped = append(helped, m[1])
	}
	if !slices.Equal(helped, options) {
		t.Errorf("--help explains %q, the table has %q", helped, options)
	}
	for _, c := range clientflags.Commands() {
		commands = append(commands, strings.TrimPrefix(c.Usage(), "nbd-client "))
	}
	if got := terms(t, "nbd-client.8", "COMMANDS"); !slices.Equal(got, commands) {
		t.Errorf("nbd-client.8 explains %q, the table has %q", got, commands)
	}
	for _, o := range clientflags.TabOptions() {
		key := o.Tab
		if o.Arg != "" {
			key += "=" + o.Arg
		}
		keys = append(keys, key)
	}
	if got := terms(t, "nbdtab.5", "OPTIONS"); !slices.Equal(got, keys) {
		t.Errorf("nbdtab.5 explains %q, the table has %q", got, keys)
	}
}

// TestGroff wants the pages to be without faults for those who print them.
func TestGroff(t *testing.T) {
	testgate.Requires(t, testgate.Program("groff"))
	for name := range pages {
		out, err := exec.Command("groff", "-man", "-Tutf8", "-ww", "-z", filepath.Join("..", "..", "man", name)).CombinedOutput()
		if err != nil || len(out) > 0 {
			t.Errorf("%s: %v: %s", name, err, out)
		}
	}
}

func TestEscape(t *testing.T) {
	var r roff
	r.text("a *b* -c \\ 'd'\n\n.e")
	if want := "a \\fBb\\fR \\-c \\e \\(aqd\\(aq\n.PP\n\\&.e\n"; r.String() != want {
		t.Errorf("got %q, want %q", r.String(), want)
	}
}
