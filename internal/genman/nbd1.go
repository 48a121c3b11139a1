package main

import (
	"maps"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"nbd.example/nbd/internal/nbdcmd"
)

// nbdTree is the tree of commands of the program nbd.
func nbdTree() *cobra.Command { return nbdcmd.New(nbdcmd.System("")) }

// withNbd adds the pages of the program nbd to others.
func withNbd(pages map[string]func() string) map[string]func() string {
	maps.Copy(pages, nbdPages())
	return pages
}

// nbdPages are the manual pages of the program nbd: one for itself, and one for
// each of its commands, with the commands below it.
func nbdPages() map[string]func() string {
	pages := map[string]func() string{"nbd.1": func() string { return nbd1(nbdTree()) }}
	for _, c := range nbdTree().Commands() {
		if c.Name() == "help" || c.Name() == "completion" {
			continue // they are cobra's, and need none
		}
		pages["nbd-"+c.Name()+".1"] = func() string {
			c, _, err := nbdTree().Find([]string{c.Name()})
			if err != nil {
				panic(err) // it was found a moment ago
			}
			return nbdCommand1(c)
		}
	}
	return pages
}

// nbd1 is nbd(1).
func nbd1(root *cobra.Command) string {
	r := begin(root, "nbd")
	r.line("SH", "COMMANDS")
	also := []string{"*nbd-server(8)*", "*nbd-client(8)*"}
	for _, c := range root.Commands() {
		switch c.Name() {
		case "help":
			r.item("help [COMMAND ...]", "Explains a command.")
		case "completion":
			r.item("completion bash|fish|powershell|zsh", `Prints a script that teaches a shell to complete the commands, names of exports, and numbers of connections. "nbd completion bash --help" says where it goes.`)
		default:
			r.item(c.Name(), sentence(c.Short)+" See nbd-"+c.Name()+"(1).")
			also = append(also, "*nbd-"+c.Name()+"(1)*")
		}
	}
	r.line("SH", "OPTIONS")
	r.item("-h, --help", "Explains the program, or a command.")
	r.item("-v, --version", "Prints the version.")
	status(r, "")
	r.line("SH", "SEE ALSO")
	r.text(strings.Join(also, ", "))
	return r.String()
}

// nbdCommand1 is the page of one command.
func nbdCommand1(c *cobra.Command) string {
	r := begin(c, "nbd-"+c.Name())
	if c.HasAvailableSubCommands() {
		r.line("SH", "COMMANDS")
		for _, sub := range c.Commands() {
			if sub.IsAvailableCommand() {
				describe(r, sub)
			}
		}
	}
	r.line("SH", "OPTIONS")
	flags(r, c.NonInheritedFlags())
	status(r, c.Name())
	examples(r, c)
	r.line("SH", "SEE ALSO")
	r.text("*nbd(1)*, *nbd-server(8)*, *nbd-server(5)*")
	return r.String()
}

// begin begins a page: name, synopsis, description.
func begin(c *cobra.Command, name string) *roff {
	r := new(roff)
	r.line("TH", strings.ToUpper(name), "1", "", "nbd", "User Commands")
	r.line("SH", "NAME")
	r.text(name + " - " + c.Short)
	r.line("SH", "SYNOPSIS")
	r.text("*" + c.CommandPath() + "*" + strings.TrimPrefix(c.UseLine(), c.CommandPath()))
	r.line("SH", "DESCRIPTION")
	r.text(c.Long)
	return r
}

// describe writes a command below another one, with its options.
func describe(r *roff, c *cobra.Command) {
	_, arguments, _ := strings.Cut(c.Use, " ")
	text := c.Long
	if c.Example != "" {
		text += "\n\nFor instance: " + strings.Join(strings.FieldsFunc(c.Example, func(c rune) bool { return c == '\n' }), "; ")
	}
	r.item(strings.TrimSpace(c.Name()+" "+arguments), text)
	if c.HasAvailableLocalFlags() && c.LocalFlags().HasAvailableFlags() {
		r.line("RS")
		flags(r, c.NonInheritedFlags())
		r.line("RE")
	}
}

// flags lists options. That for help is everywhere.
func flags(r *roff, set *pflag.FlagSet) {
	set.VisitAll(func(f *pflag.Flag) {
		if f.Hidden || f.Name == "help" {
			return
		}
		arg, text := pflag.UnquoteUsage(f)
		form := "--" + f.Name
		if arg != "" {
			form += "=" + arg
		}
		if f.Shorthand != "" {
			form = strings.TrimSpace("-"+f.Shorthand+" "+arg) + ", " + form
		}
		text = sentence(text)
		if d := f.DefValue; d != "" && d != "false" && d != "0" {
			text += " The default is " + d + "."
		}
		r.item(form, text)
	})
}

// status explains how a command ends.
func status(r *roff, name string) {
	r.line("SH", "EXIT STATUS")
	for _, s := range nbdcmd.Statuses(name) {
		r.item(strconv.Itoa(s.Number), s.Meaning)
	}
}

func examples(r *roff, c *cobra.Command) {
	if c.Example == "" {
		return
	}
	r.line("SH", "EXAMPLES")
	r.example(strings.ReplaceAll(strings.TrimPrefix(c.Example, "  "), "\n  ", "\n"))
}

// sentence makes a line of help a sentence.
func sentence(s string) string { return strings.ToUpper(s[:1]) + s[1:] + "." }
