package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"time"

	"nbd.example/nbd/chain/core"
	"nbd.example/nbd/internal/clientflags"
	"nbd.example/nbd/internal/daemon"
	"nbd.example/nbd/internal/memlock"
	"nbd.example/nbd/internal/nbdtab"
	"nbd.example/nbd/internal/opener"
	"nbd.example/nbd/internal/proglog"
	"nbd.example/nbd/kernel"
	"nbd.example/nbd/supervise"
)

// version is set by the linker for a release.
var version = "development"

// Exit statuses. Zero and one are all that the reference has, but for its -check.
const (
	exitOK      = 0
	exitError   = 1 // what was asked for could not be done; of -c and status: it is not attached
	exitUnknown = 2 // of -c and status: it could not be found out
	exitWaiting = 3 // of status: attached, but without a connection
	exitTimeout = 4 // of wait: the time was over
	exitBusy    = 5 // of detach: the device is in use
)

// environment is what the program has of the world, so that tests can give it another
// one.
type environment struct {
	name           string // as which it was started
	stdout, stderr *os.File
	getenv         func(string) string
	open           opener.Opener
	// driver opens the kernel's driver; the old one, by ioctl, if it is told to.
	driver     func(ioctl bool) (kernel.Driver, error)
	loadModule func(context.Context) error
	// announce has the system look at a device anew.
	announce func(kernel.Index)
	// signals are sent to a process that keeps devices. Nil: those of the system.
	signals <-chan os.Signal
	// inherited are sockets of an earlier process.
	inherited func() []supervise.Socket
	// stopping reports whether the machine is going down.
	stopping func(context.Context) bool
	// lockMemory prepares the process for swap.
	lockMemory func(memlock.Options) ([]memlock.Warning, error)
	// look is how often devices are looked at that this process does not keep, or not yet.
	look time.Duration
	// keeper is how long who keeps a device is waited for, where that can be helped.
	keeper time.Duration
	// openers adds who has a device open.
	openers func(*kernel.Info)
	// parent is the number of the process that has started this one.
	parent func() int
}

func systemEnv() *environment {
	return &environment{
		name: os.Args[0], stdout: os.Stdout, stderr: os.Stderr, getenv: os.Getenv, open: opener.Here(),
		driver: openDriver, loadModule: kernel.LoadModule, inherited: supervise.Inherit, announce: announce,
		stopping: systemStops, lockMemory: memlock.Lock, look: stayLook, keeper: keeperLimit, openers: kernel.System{}.AddOpeners, parent: os.Getppid,
	}
}

// program is one run.
type program struct {
	env   *environment
	args  []string
	flags *clientflags.Flags
	logs  *proglog.Log
	log   *slog.Logger
	child *daemon.Child
	swap  atomic.Bool // the process is prepared for swap
}

// run is the whole program. It returns the status to exit with.
func run(ctx context.Context, args []string, env *environment) int {
	child := daemon.AsChild()
	if isGenerator(env.name) {
		args = append([]string{"--systemd-generator", "--"}, args...)
	}
	flags, err := clientflags.Parse(args)
	if err != nil {
		fmt.Fprintf(env.stderr, "nbd-client: %s\n", strings.ReplaceAll(err.Error(), "\n", "\nnbd-client: "))
		if len(args) > 0 && flags.Action == clientflags.Check {
			return exitUnknown
		}
		return exitError
	}
	p := &program{env: env, args: args, flags: flags, child: child}
	if env.getenv(notifySocket) != "" && !p.notified() {
		os.Unsetenv(notifySocket) // for the process that will keep the device, too
	}
	p.logs = proglog.New(proglog.Config{
		Name: "nbd-client", Stderr: env.stderr, Format: flags.LogFormat, Level: flags.LogLevel, Journal: env.getenv("JOURNAL_STREAM"),
		Kernel: true,
	})
	defer p.logs.Close()
	if child != nil {
		p.logs.Hold()
	}
	p.log = p.logs.Logger()
	for _, w := range flags.Warnings {
		p.warn(w)
	}
	return p.act(ctx)
}

// warn says what is odd about the command line, or a file that it names. A process that goes
// on for the one that was started, in the background or under another name, does not say it
// once more.
func (p *program) warn(text string) {
	if p.child == nil && !(p.flags.SystemdMark && marked(p.env.name)) {
		p.log.Warn(text)
	}
}

// isGenerator reports whether the program was started as a generator of systemd: by a
// link in the folder of generators.
func isGenerator(name string) bool { return strings.HasSuffix(filepath.Base(name), "-generator") }

// act does what the command line asks for.
func (p *program) act(ctx context.Context) int {
	switch p.flags.Action {
	case clientflags.Help:
		return p.tell(clientflags.WriteHelp(p.env.stdout))
	case clientflags.Version:
		_, err := fmt.Fprintf(p.env.stdout, "This is nbd-client, from nbd %s\n", versionText())
		return p.tell(err)
	case clientflags.Completion:
		return p.tell(clientflags.WriteCompletion(p.env.stdout, p.flags.Shell))
	case clientflags.Chains:
		return p.tell(core.Registry(core.Files{}).WriteHelp(p.env.stdout))
	case clientflags.Generator:
		return p.generate()
	case clientflags.Exports:
		return p.exports(ctx)
	case clientflags.Attach:
		return p.attach(ctx)
	case clientflags.Supervisor:
		return p.supervisor(ctx)
	}
	return p.manage(ctx)
}

// tell ends an action that only prints.
func (p *program) tell(err error) int {
	if err != nil {
		p.log.Error(err.Error())
		return exitError
	}
	return exitOK
}

// fail logs an error with what can be done about it.
func (p *program) fail(ctx context.Context, err error) int {
	p.logLines(err)
	for _, h := range p.hints(ctx, err) {
		p.log.Info(h)
	}
	return exitError
}

// logLines logs each of the errors that were joined in err.
func (p *program) logLines(err error) {
	for _, line := range strings.Split(err.Error(), "\n") {
		p.log.Error(line)
	}
}

// versionText is the version of a release, or what the build says of itself.
func versionText() string {
	if info, ok := debug.ReadBuildInfo(); ok && version == "development" && info.Main.Version != "" && info.Main.Version != "(devel)" {
		return info.Main.Version
	}
	return version
}

// dir is where supervisors keep their state.
func (p *program) dir() string {
	if p.flags.StateDir != "" {
		return p.env.open.Abs(p.flags.StateDir)
	}
	return supervise.DefaultDir
}

// table reads nbdtab. One that does not exist is empty.
func (p *program) table() (*nbdtab.Table, error) {
	name := clientflags.DefaultTab
	if p.flags.TabFile != "" {
		name = p.flags.TabFile
	}
	f, err := p.env.open.OpenFile(name, os.O_RDONLY, 0)
	if errors.Is(err, fs.ErrNotExist) && p.flags.TabFile == "" {
		return &nbdtab.Table{Name: name}, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	t, err := nbdtab.Parse(f, name)
	if err != nil {
		return nil, err
	}
	for _, w := range t.Warnings {
		p.warn(w)
	}
	return t, nil
}

// patience bounds what other processes and the kernel are waited for.
const patience = 30 * time.Second
