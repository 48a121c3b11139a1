package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"nbd.example/nbd/internal/opener"
	"nbd.example/nbd/internal/serverflags"
	"nbd.example/nbd/internal/winsvc"
)

// serviceName is what the service is called, unless another name is given: two
// services need two names.
const serviceName = "nbd-server"

// startLimit and stopLimit bound the wait for the service to start, and to stop.
const (
	startLimit = 2 * time.Minute
	stopLimit  = drainTime + time.Minute
)

// serviceCommand is "nbd-server service ..." as it was typed.
type serviceCommand struct {
	verb    string
	name    string
	account string
	dir     string // of run: where the server was installed from
	manual  bool
	args    []string // the command line of the server
}

// asService does what "nbd-server service ..." asks for. It reports false for
// another command line.
func asService(args []string) (status int, done bool) {
	if len(args) == 0 || args[0] != "service" {
		return 0, false
	}
	c, err := parseService(args[1:])
	if err != nil {
		fmt.Fprintf(os.Stderr, "nbd-server: service: %v\n%s", err, serverflags.ServiceUsage())
		return exitUsage, true
	}
	if c.verb == "run" {
		status, err = c.run()
	} else {
		err = c.do()
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "nbd-server: %v\n", err)
		return exitError, true
	}
	return status, true
}

// parseService reads what stands behind the word service.
func parseService(args []string) (*serviceCommand, error) {
	c := &serviceCommand{name: serviceName}
	if len(args) == 0 {
		return nil, errors.New("the command is missing")
	}
	c.verb, args = args[0], args[1:]
	switch c.verb {
	case "install", "start", "stop", "reload", "status", "remove", "run":
	default:
		return nil, fmt.Errorf("unknown command %q", c.verb)
	}
	own := map[string]*string{"--name": &c.name}
	switch c.verb {
	case "install":
		own["--account"] = &c.account
	case "run":
		own["--dir"] = &c.dir
	}
	for len(args) > 0 {
		option, value, has := strings.Cut(args[0], "=")
		to := own[option]
		switch {
		case args[0] == "--":
			c.args = args[1:]
			return c, c.check()
		case args[0] == "--manual" && c.verb == "install":
			c.manual = true
		case to == nil:
			c.args = args
			return c, c.check()
		case !has && len(args) == 1:
			return nil, fmt.Errorf("option %s needs its argument", option)
		case !has:
			*to, args = args[1], args[1:]
		default:
			*to = value
		}
		args = args[1:]
	}
	return c, c.check()
}

// check looks at the command line of the server, where one belongs.
func (c *serviceCommand) check() error {
	if c.name == "" || len(c.name) > 256 || strings.ContainsAny(c.name, `/\`) {
		return fmt.Errorf("%q cannot be the name of a service", c.name)
	}
	if c.verb != "install" && c.verb != "run" {
		if len(c.args) > 0 {
			return fmt.Errorf("%s: unknown argument %q", c.verb, c.args[0])
		}
		return nil
	}
	flags, err := serverflags.Parse(c.args)
	switch {
	case err != nil:
		return err
	case flags.Inetd:
		return errors.New("a service has no client on standard input; name a port")
	case flags.Help, flags.Version, flags.Chains, flags.Completion != "", flags.Check, flags.Dump != "", flags.Section != "":
		return errors.New("a service serves; options that print something are not for it")
	}
	return nil
}

// do carries out all commands but run.
func (c *serviceCommand) do() error {
	ctx := context.Background()
	switch c.verb {
	case "install":
		return c.install()
	case "start":
		ctx, cancel := context.WithTimeoutCause(ctx, startLimit, fmt.Errorf("not done after %v", startLimit))
		defer cancel()
		return winsvc.Start(ctx, c.name)
	case "stop", "remove":
		ctx, cancel := context.WithTimeoutCause(ctx, stopLimit, fmt.Errorf("not done after %v", stopLimit))
		defer cancel()
		if c.verb == "stop" {
			return winsvc.Stop(ctx, c.name)
		}
		return winsvc.Remove(ctx, c.name)
	case "reload":
		return winsvc.Reload(c.name)
	}
	s, err := winsvc.Query(c.name)
	if err != nil {
		return err
	}
	text := s.State
	if s.Process != 0 {
		text += fmt.Sprintf(", process %d", s.Process)
	}
	_, err = fmt.Printf("%s: %s\n", c.name, text)
	return err
}

// install records the command line, and the folder that its names are relative to.
func (c *serviceCommand) install() error {
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program's file: %w", err)
	}
	dir, err := os.Getwd()
	if err != nil {
		return fmt.Errorf("find the current folder: %w", err)
	}
	return winsvc.Install(winsvc.Config{
		Name: c.name, DisplayName: "NBD server (" + c.name + ")",
		Description: "Serves files and disks as network block devices.",
		Program:     self, Account: c.account, Manual: c.manual,
		Args: append([]string{"service", "run", "--name", c.name, "--dir", dir, "--"}, c.args...),
	})
}

// run is the program as the service manager has started it.
func (c *serviceCommand) run() (status int, err error) {
	return winsvc.Run(c.name, func(s *winsvc.Session) int {
		if c.dir != "" {
			if err := os.Chdir(c.dir); err != nil {
				s.Log(slog.LevelError, []byte("nbd-server: the folder that it was installed from: "+err.Error()))
				return exitError
			}
		}
		env := systemEnv()
		env.open = opener.Here()
		env.service = &service{log: s.Log, signals: s.Signals(), state: func(state string) {
			if strings.HasPrefix(state, "READY=1") {
				s.Ready()
			}
		}}
		return run(context.Background(), c.args, env)
	})
}
