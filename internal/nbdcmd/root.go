// Package nbdcmd is the program nbd: a tree of commands. cmd/nbd runs it, and
// internal/genman makes manual pages of it, so that help and manual cannot differ.
//
// A command is a function that returns a *cobra.Command; it prints to what the
// command has for output, and returns what went wrong. Its Short is a line of help, its
// Long the description in the manual, its Example is indented by two spaces.
package nbdcmd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"nbd.example/nbd/internal/control"
)

// Env is what the program has of the world, so that tests can give it another
// one.
type Env struct {
	Stdin          io.Reader
	Stdout, Stderr io.Writer
	Getenv         func(string) string
	Version        string
}

// System returns the world as it is.
func System(version string) *Env {
	return &Env{Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Getenv: os.Getenv, Version: version}
}

// Exit statuses.
const (
	exitOK    = 0
	exitError = 1 // what was asked for could not be done
	exitUsage = 2 // the command line cannot be understood
	// Of ctl, where the reason is one that scripts want to tell from others.
	exitNotFound   = 3 // no such export, or connection
	exitExists     = 4 // an export of that name is there
	exitUnanswered = 5 // no server, or no answer
)

// unanswered is the code of a [control.Unanswered] for programs.
const unanswered = control.Code("unanswered")

// Statuses tells what each exit status of the command of that name means, in order.
func Statuses(name string) (list []Status) {
	list = []Status{{exitOK, "What was asked for was done."}, {exitError, "It could not be done."}, {exitUsage, "The command line cannot be understood."}}
	if name == "ctl" {
		list = append(list, Status{exitNotFound, "There is no such export, or no such connection."},
			Status{exitExists, "There is an export of that name already."},
			Status{exitUnanswered, "There is no server at the control socket, or it has not answered."})
	}
	return list
}

// Status is an exit status.
type Status struct {
	Number  int
	Meaning string
}

// Main runs the program, whose name is the first of args, and returns the status to
// exit with.
func Main(ctx context.Context, args []string, env *Env) int {
	root := tool(strings.TrimSuffix(filepath.Base(args[0]), ".exe"), env)
	root.SetArgs(args[1:])
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return exitOK
	}
	var failed *failure
	if errors.As(err, &failed) {
		code, status := classify(err)
		if asked := cmd.Flag("json"); asked != nil && asked.Value.String() == "true" {
			json.NewEncoder(env.Stderr).Encode(map[string]control.Error{"error": {Code: code, Text: err.Error()}})
			return status
		}
		complain(root, err)
		return status
	}
	complain(root, err)
	fmt.Fprintf(env.Stderr, "%s: usage: %s; \"%s --help\" explains it\n", root.Name(), cmd.UseLine(), cmd.CommandPath())
	return exitUsage
}

// complain prints an error.
func complain(root *cobra.Command, err error) {
	name := root.Name() + ": "
	fmt.Fprintln(root.ErrOrStderr(), name+strings.ReplaceAll(err.Error(), "\n", "\n"+name))
}

// classify returns what programs tell an error by.
func classify(err error) (control.Code, int) {
	var bad *control.Error
	var no *control.Unanswered
	switch {
	case errors.As(err, &no):
		return unanswered, exitUnanswered
	case !errors.As(err, &bad):
		return control.Failed, exitError
	case bad.Code == control.NotFound:
		return bad.Code, exitNotFound
	case bad.Code == control.Exists:
		return bad.Code, exitExists
	}
	return bad.Code, exitError
}

// failure is an error of what a command does. All others are of the command line.
type failure struct{ error }

func (f *failure) Unwrap() error { return f.error }

// runs makes a function that may fail the Run of a command.
func runs(f func(cmd *cobra.Command, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		if err := f(cmd, args); err != nil {
			return &failure{err}
		}
		return nil
	}
}

// New returns the tree of commands.
func New(env *Env) *cobra.Command {
	root := &cobra.Command{
		Use:   "nbd COMMAND ...",
		Short: "tools for network block devices",
		Long: `The tools of NBD, one command each: they control a running nbd-server, and read and replay its transaction logs.

Servers and exports are named by NBD URIs, such as nbd://host/export or nbd+unix:///export?socket=/run/nbd.sock; with nbds:// and nbds+unix:// the connection is protected by TLS, and tls-certificates=DIR behind the ? names a folder with ca-cert.pem and, if the server asks for them, client-cert.pem and client-key.pem.`,
	}
	program(root, env)
	root.CompletionOptions.HiddenDefaultCmd = false
	group(root, newCtl(env), newTrdump(), newTrplay())
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	return root
}

// command completes a command.
func command(c *cobra.Command) *cobra.Command {
	c.DisableFlagsInUseLine = true
	c.Long = wrap(c.Long)
	return c
}

// alone completes a command that takes no arguments.
func alone(c *cobra.Command) *cobra.Command {
	c.Args, c.ValidArgsFunction = cobra.NoArgs, cobra.NoFileCompletions
	return command(c)
}

// group completes a command that has others below it, and does nothing by itself.
func group(c *cobra.Command, sub ...*cobra.Command) *cobra.Command {
	c.AddCommand(sub...)
	c.Args = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return nil
		}
		text := fmt.Sprintf("there is no command %q", cmd.CommandPath()+" "+args[0])
		if like := cmd.SuggestionsFor(args[0]); len(like) > 0 {
			text += fmt.Sprintf("; did you mean %q?", cmd.CommandPath()+" "+like[0])
		}
		return errors.New(text)
	}
	c.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	c.SuggestionsMinimumDistance = 2
	return command(c)
}

// wrap breaks paragraphs into lines that fit into a terminal.
func wrap(text string) string {
	const width = 79
	var b strings.Builder
	for i, p := range strings.Split(text, "\n\n") {
		if i > 0 {
			b.WriteString("\n\n")
		}
		column := 0
		for _, word := range strings.Fields(p) {
			switch {
			case column == 0:
			case column+1+len(word) > width:
				b.WriteByte('\n')
				column = 0
			default:
				b.WriteByte(' ')
				column++
			}
			b.WriteString(word)
			column += len(word)
		}
	}
	return b.String()
}
