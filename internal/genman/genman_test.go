package main

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"nbd.example/nbd/internal/nbdconf"
	"nbd.example/nbd/internal/serverflags"
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

func TestEscape(t *testing.T) {
	var r roff
	r.text("a *b* -c \\ 'd'\n\n.e")
	if want := "a \\fBb\\fR \\-c \\e \\(aqd\\(aq\n.PP\n\\&.e\n"; r.String() != want {
		t.Errorf("got %q, want %q", r.String(), want)
	}
}
