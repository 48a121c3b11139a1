package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// TestNbdPages compares the committed pages of the program nbd with its tree of
// commands, both ways: no page, command or option is missing, and none is too much.
func TestNbdPages(t *testing.T) {
	var want []string
	for name := range nbdPages() {
		want = append(want, name)
	}
	slices.Sort(want)
	got, err := filepath.Glob(filepath.Join("..", "..", "man", "nbd*.1"))
	if err != nil {
		t.Fatal(err)
	}
	for i := range got {
		got[i] = filepath.Base(got[i])
	}
	if slices.Sort(got); !slices.Equal(got, want) {
		t.Errorf("the pages are %q, the tree has %q", got, want)
	}
	for _, c := range nbdTree().Commands() {
		if c.Name() != "help" && c.Name() != "completion" {
			compareCommand(t, c)
		}
	}
}

// compareCommand compares one page with its command.
func compareCommand(t *testing.T, c *cobra.Command) {
	page := "nbd-" + c.Name() + ".1"
	text, err := os.ReadFile(filepath.Join("..", "..", "man", page))
	if err != nil {
		t.Error(err)
		return
	}
	var options []string
	visit := func(f *pflag.Flag) {
		if f.Name != "help" {
			options = append(options, f.Name)
		}
	}
	c.NonInheritedFlags().VisitAll(visit)
	for _, x := range terms(t, page, "OPTIONS") {
		_, name, _ := strings.Cut(x, "--")
		name, _, _ = strings.Cut(name, "=")
		if i := slices.Index(options, name); i < 0 {
			t.Errorf("%s explains --%s, which is not there", page, name)
		} else {
			options = slices.Delete(options, i, i+1)
		}
	}
	if len(options) > 0 {
		t.Errorf("%s does not explain %q", page, options)
	}
	if !strings.Contains(string(text), ".SH \"COMMANDS\"\n") {
		if c.HasAvailableSubCommands() {
			t.Errorf("%s has no commands", page)
		}
		return
	}
	var commands []string
	for _, sub := range c.Commands() {
		commands = append(commands, sub.Name())
		sub.NonInheritedFlags().VisitAll(func(f *pflag.Flag) {
			if f.Name != "help" {
				commands = append(commands, f.Name)
			}
		})
	}
	var explained []string
	for _, x := range terms(t, page, "COMMANDS") {
		if _, option, ok := strings.Cut(x, "--"); ok && strings.HasPrefix(x, "-") {
			name, _, _ := strings.Cut(option, "=")
			explained = append(explained, name)
			continue
		}
		name, _, _ := strings.Cut(x, " ")
		explained = append(explained, name)
	}
	if !slices.Equal(explained, commands) {
		t.Errorf("%s explains %q, the tree has %q", page, explained, commands)
	}
}
