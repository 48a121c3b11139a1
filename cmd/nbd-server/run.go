package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"runtime/debug"
	"strings"

	"nbd.example/nbd/chain/core"
	"nbd.example/nbd/internal/daemon"
	"nbd.example/nbd/internal/nbdconf"
	"nbd.example/nbd/internal/opener"
	"nbd.example/nbd/internal/proglog"
	"nbd.example/nbd/internal/secrets"
	"nbd.example/nbd/internal/serverflags"
	"nbd.example/nbd/layer/wait"
)

// version is set by the linker for a release.
var version = "development"

// Exit statuses.
const (
	exitOK    = 0
	exitError = 1 // what was asked for could not be done
	exitUsage = 2 // the command line cannot be understood
)

// environment is what the program has of the world, so that tests can give it
// another one.
type environment struct {
	stdin, stdout, stderr *os.File
	getenv                func(string) string
	open                  opener.Opener
	service               *service // nil unless Windows has started the program as a service
}

func systemEnv() *environment {
	return &environment{
		stdin: os.Stdin, stdout: os.Stdout, stderr: os.Stderr,
		getenv: os.Getenv, open: opener.Here(),
	}
}

// program is one run.
type program struct {
	env   *environment
	flags *serverflags.Flags
	logs  *proglog.Log
	log   *slog.Logger
	waits wait.Group // exports whose changes wait for SIGUSR1

	records records // the transaction logs
	swap    bool    // clients swap on this machine
	memory  memory

	activated bool // a service manager has passed sockets

	control net.Listener // the control socket that a service manager has passed, or nil
	runner  runner       // of commands around connections

	keys    *secrets.Reader // reads keys once privileges are given up; nil for this process itself
	dropped bool            // privileges were given up
}

// run is the whole program. It returns the status to exit with.
func run(ctx context.Context, args []string, env *environment) int {
	child := daemon.AsChild()
	flags, err := serverflags.Parse(args)
	if err != nil {
		fmt.Fprintf(env.stderr, "nbd-server: %s\n", strings.ReplaceAll(err.Error(), "\n", "\nnbd-server: "))
		fmt.Fprintln(env.stderr, "nbd-server: --help explains the command line")
		return exitUsage
	}
	p := &program{env: env, flags: flags, activated: env.getenv("LISTEN_FDS") != ""}
	if done, status := p.tell(); done {
		return status
	}
	flags.Inetd = flags.Inetd || p.inetdByConfig()
	p.logs = newLogs(env, flags)
	defer p.logs.Close()
	p.log = p.logs.Logger()
	for _, text := range flags.AllAddresses() {
		if _, err := nbdconf.ParseAddress(text); err != nil {
			p.log.Error(err.Error())
			return exitUsage
		}
	}
	if p.printsOnly() {
		return p.print()
	}
	if child == nil && p.wantsBackground() {
		status, err := daemon.Start(args, env.stderr)
		if err != nil {
			p.log.Error(err.Error())
			return exitError
		}
		return status
	}
	return p.serve(ctx, child)
}

// tell answers options that only ask for a text.
func (p *program) tell() (done bool, status int) {
	var err error
	switch {
	case p.flags.Help:
		err = serverflags.WriteHelp(p.env.stdout)
	case p.flags.Version:
		_, err = fmt.Fprintf(p.env.stdout, "This is nbd-server version %s\n", versionText())
	case p.flags.Completion != "":
		err = serverflags.WriteCompletion(p.env.stdout, p.flags.Completion)
	case p.flags.Chains:
		err = core.Registry(core.Files{}).WriteHelp(p.env.stdout)
	default:
		return false, exitOK
	}
	if err != nil {
		fmt.Fprintf(p.env.stderr, "nbd-server: %v\n", err)
		return true, exitError
	}
	return true, exitOK
}

// versionText is the version of a release, or what the build says of itself.
func versionText() string {
	if info, ok := debug.ReadBuildInfo(); ok && version == "development" && info.Main.Version != "" && info.Main.Version != "(devel)" {
		return info.Main.Version
	}
	return version
}

// wantsBackground tells whether the server leaves the terminal, as the reference
// does. A service manager that passes sockets, or waits for a message, wants the
// process that it has started.
func (p *program) wantsBackground() bool {
	f := p.flags
	return daemon.Supported && !f.Foreground && !f.Debug && !f.Inetd &&
		!p.activated && p.env.getenv("NOTIFY_SOCKET") == ""
}

func (p *program) printsOnly() bool {
	return p.flags.Section != "" || p.flags.Check || p.flags.Dump != ""
}

// print answers -o, --check-config and --dump-config.
func (p *program) print() int {
	if p.flags.Section != "" {
		return p.printSection()
	}
	conf, problems, err := p.load()
	least := nbdconf.Error
	if p.flags.Check {
		least = nbdconf.Unknown
	}
	if err != nil {
		p.log.Error(err.Error())
	}
	if p.logProblems(problems, least) || err != nil {
		return exitError
	}
	// What the chains of the exports say is known only to the registry.
	if _, err := p.exports(conf); err != nil {
		p.logLines(err)
		return exitError
	}
	switch p.flags.Dump {
	case "json":
		err = conf.WriteJSON(p.env.stdout)
	case "keyfile":
		err = conf.WriteKeyFile(p.env.stdout)
	}
	if err != nil {
		p.log.Error(err.Error())
		return exitError
	}
	return exitOK
}

// logProblems logs all of them, those that are at least as bad as least as
// errors, and tells whether there was one of these.
func (p *program) logProblems(problems nbdconf.Problems, least nbdconf.Severity) (bad bool) {
	for _, x := range problems {
		level := slog.LevelWarn
		if x.Severity >= least {
			level, bad = slog.LevelError, true
		}
		p.log.Log(context.Background(), level, x.Error())
	}
	return bad
}

// logLines logs an error, in as many lines as it has: one for each of those that
// were joined in it.
func (p *program) logLines(err error) {
	for line := range strings.Lines(err.Error()) {
		p.log.Error(strings.TrimRight(line, "\n"))
	}
}
