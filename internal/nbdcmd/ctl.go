package nbdcmd

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"nbd.example/nbd/internal/control"
)

// defaultSocket returns the control socket that is asked if none is named. On Windows it
// is beside the server's configuration.
func (e *Env) defaultSocket() string { return socketOf(runtime.GOOS, e.Getenv("ProgramData")) }

func socketOf(system, programData string) string {
	switch system {
	case "linux":
		return "/run/nbd-server/control"
	case "windows":
		return cmp.Or(programData, `C:\ProgramData`) + `\nbd-server\control`
	}
	return "/var/run/nbd-server/control" // there is no /run
}

// dial connects to the server's control socket.
func (x *ctl) dial(ctx context.Context) (*control.Client, error) {
	return control.Dial(ctx, cmp.Or(x.socket, x.env.Getenv(socketVariable), x.env.defaultSocket()))
}

// socketVariable names the control socket in the environment.
const socketVariable = "NBD_CONTROL"

// ctl is what all commands below ctl have in common.
type ctl struct {
	env     *Env
	socket  string
	timeout time.Duration
	json    bool
}

func newCtl(env *Env) *cobra.Command {
	x := &ctl{env: env}
	c := &cobra.Command{
		Use:   "ctl [--socket PATH] [--timeout TIME] [--json] COMMAND ...",
		Short: "look at a running nbd-server, and change it",
		Long: `Looks at a running nbd-server, and changes what it serves, without a restart. The server must have been started with --control PATH, or have control = PATH in the section [generic] of its configuration. Who may use the socket is who may write to it: at first its owner alone. By default it is looked for in /run/nbd-server/control, on macOS and the BSDs in /var/run/nbd-server/control, and on Windows in %ProgramData%\nbd-server\control.

What is changed here lasts until the server ends, or reads its configuration again (SIGHUP, or nbd ctl reload): then it serves what the configuration says, and exports that were added here are removed.

An export that is changed or removed may have clients. They stay, until they leave by themselves, unless --drain or --cut is given. --drain ends each connection when it has answered what the client has asked; a client that connects again, as the kernel's does when it is told to, loses nothing. --cut ends them at once.`,
		Example: `  nbd ctl connections
  nbd ctl add scratch exportname=memory:1G
  nbd ctl show disk
  nbd ctl change disk readonly=true --drain
  nbd ctl remove scratch --cut
  nbd ctl list --json`,
	}
	c.PersistentFlags().StringVarP(&x.socket, "socket", "s", "", "the `PATH` of the server's control socket (default $"+socketVariable+", or "+env.defaultSocket()+")")
	c.PersistentFlags().DurationVar(&x.timeout, "timeout", 30*time.Second, "how long to wait for the server, and for connections to end, a `TIME` such as 30s or 5m")
	c.PersistentFlags().BoolVar(&x.json, "json", false, "print JSON; what has nothing to tell prints {}, and an error goes to standard error, as {\"error\": {\"code\": CODE, \"text\": TEXT}}")
	c.RegisterFlagCompletionFunc("timeout", cobra.FixedCompletions([]string{"5s", "30s", "5m"}, cobra.ShellCompDirectiveNoFileComp))
	return group(c, x.status(), x.list(), x.show(), x.connections(), x.close(), x.add(), x.change(), x.remove(), x.reload(), x.certs(), x.merge())
}

// maxTimeout is the longest that --timeout can be.
const maxTimeout = 24 * time.Hour

// grace is what the server's answer that time is up may take to come.
const grace = time.Second

// ask sends one request, and waits as long as --timeout says.
func (x *ctl) ask(ctx context.Context, r control.Request, result any) error {
	if x.timeout <= 0 || x.timeout > maxTimeout {
		return fmt.Errorf("--timeout is %v; want more than 0, and 24h at most", x.timeout)
	}
	r.Seconds = x.timeout.Seconds()
	ctx, cancel := context.WithTimeoutCause(ctx, x.timeout+grace, fmt.Errorf("the server has not answered for %v (--timeout); it is stopped, or waits for a disk; what was asked for may still be done", x.timeout))
	defer cancel()
	c, err := x.dial(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	return explain(c.Do(ctx, r, result))
}

// do sends one request. If result is not nil, it is printed: as JSON if that was asked
// for, else by table.
func (x *ctl) do(cmd *cobra.Command, r control.Request, result any, table func() error) error {
	err := x.ask(cmd.Context(), r, result)
	switch {
	case err != nil:
		return err
	case result == nil:
	case x.json:
		return printJSON(cmd, result)
	default:
		return table()
	}
	return nil
}

// done ends a command that has no result, with a line for people, or none.
func (x *ctl) done(cmd *cobra.Command, text string) error {
	switch {
	case x.json: // whoever reads JSON wants some
		return printJSON(cmd, struct{}{})
	case text == "":
		return nil
	}
	_, err := fmt.Fprintln(cmd.OutOrStdout(), text)
	return err
}

func printJSON(cmd *cobra.Command, v any) error {
	e := json.NewEncoder(cmd.OutOrStdout())
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// explain says what to do about an error of the server.
func explain(err error) error {
	var bad *control.Error
	if !errors.As(err, &bad) {
		return err
	}
	switch bad.Code {
	case control.Exists:
		return fmt.Errorf("%w; \"nbd ctl change\" changes it", err)
	case control.NotFound:
		return fmt.Errorf("%w; \"nbd ctl list\" and \"nbd ctl connections\" show what there is", err)
	}
	return err
}

func (x *ctl) status() *cobra.Command {
	return alone(&cobra.Command{
		Use: "status", Short: "print what the server is",
		Long: `Prints the server's version and process, since when it serves, its configuration, where it listens, and how many exports and connections it has; how the last reload ended, if there was one, and since when a reload or a change is under way, which may hang on a disk; and the transaction logs that are open, with how many records are missing there, because their disk was full or too slow.`,
		RunE: runs(func(cmd *cobra.Command, _ []string) error {
			var s control.Status
			return x.do(cmd, control.Request{Op: control.OpStatus}, &s, func() error { printStatus(cmd.OutOrStdout(), &s); return nil })
		}),
	})
}

func (x *ctl) list() *cobra.Command {
	return alone(&cobra.Command{
		Use: "list", Short: "list the exports",
		Long: `Lists the exports, with their states:

serving: clients are let in.

pending: it was changed, or is to be opened anew; who uses it stays, new clients are refused until all have left, then the change is in force.

removed: it was removed; who uses it stays.

moving: its device is being opened anew, new clients wait.

broken: making data stable has failed, so that written data may be lost; it can only be read. "nbd ctl change NAME" opens it anew, when the reason is gone, and the clients have left. Where clients of one address share a device (%s in exportname) or a command is run for them, one such device is broken; where each client has a device of its own, that is its own affair, and not shown.

out of order: it could not be opened again.

The size is missing where each client has a device of its own. WAITFILE tells of an export with waitfile whether it is collecting, merging or merged, how much there is to merge, and whether the last merge failed.`,
		RunE: runs(func(cmd *cobra.Command, _ []string) error {
			list := []control.Export{}
			return x.do(cmd, control.Request{Op: control.OpList}, &list, func() error { printExports(cmd.OutOrStdout(), list); return nil })
		}),
	})
}

func (x *ctl) show() *cobra.Command {
	return command(&cobra.Command{
		Use: "show NAME", Short: "print the keys of an export", Args: cobra.ExactArgs(1),
		Long: `Prints how an export is configured, with what was changed by "nbd ctl change", as a section of the configuration file: each key that has another value than its default. With --json the keys are an object, by the name of keys, with values as add and change take them.`,
		RunE: runs(func(cmd *cobra.Command, args []string) error {
			var s control.Section
			return x.do(cmd, control.Request{Op: control.OpShow, Export: args[0]}, &s, func() error { return printSection(cmd.OutOrStdout(), &s) })
		}),
		ValidArgsFunction: x.completeNames,
	})
}

func (x *ctl) connections() *cobra.Command {
	return alone(&cobra.Command{
		Use: "connections", Short: "list the connections",
		Long: `Lists the connections: from where, to which export, for how long, with which TLS and which holder of a certificate, how much was read and written, how many requests were answered with an error, and how many are not answered yet. A connection without an export is still negotiating; one that is closing does nothing any more, but waits a moment for its client to close, too. Of a client on a unix socket the process, the user and the group are shown, where the system tells (Linux), as they were when it connected; pid=0 is a process that the server cannot see.`,
		RunE: runs(func(cmd *cobra.Command, _ []string) error {
			list := []control.Connection{}
			return x.do(cmd, control.Request{Op: control.OpConnections}, &list, func() error { printConnections(cmd.OutOrStdout(), list, time.Now()); return nil })
		}),
	})
}

func (x *ctl) close() *cobra.Command {
	cut := false
	c := &cobra.Command{
		Use: "close [--cut] ID ...", Short: "close connections", Args: cobra.MinimumNArgs(1),
		Long: `Closes connections, which are named by the numbers that "nbd ctl connections" shows. What the client has asked is answered first; with --cut it is not. If one of the numbers is of no connection, the others are closed all the same.`,
		RunE: runs(func(cmd *cobra.Command, args []string) error {
			how := control.Drain
			if cut {
				how = control.Cut
			}
			ids, err := numbers(args)
			if err != nil {
				return err
			}
			var errs []error
			for _, id := range ids {
				errs = append(errs, x.ask(cmd.Context(), control.Request{Op: control.OpClose, ID: id, Clients: how.String()}, nil))
			}
			if err := errors.Join(errs...); err != nil {
				return err
			}
			return x.done(cmd, "")
		}),
		ValidArgsFunction: x.completeIDs,
	}
	c.Flags().BoolVar(&cut, "cut", false, "close at once")
	return command(c)
}

// numbers reads those of connections.
func numbers(args []string) ([]uint64, error) {
	ids := make([]uint64, len(args))
	errs := make([]error, len(args))
	for i, a := range args {
		var err error
		if ids[i], err = strconv.ParseUint(a, 10, 64); err != nil {
			errs[i] = fmt.Errorf("%q is no number of a connection; \"nbd ctl connections\" shows them", a)
		}
	}
	return ids, errors.Join(errs...)
}

// keys reads KEY=VALUE arguments.
func keys(args []string) (map[string]string, error) {
	m := make(map[string]string)
	for _, a := range args {
		key, value, ok := strings.Cut(a, "=")
		if !ok || key == "" {
			return nil, fmt.Errorf("%q is not of the form KEY=VALUE; the keys are those of an export in nbd-server(5)", a)
		}
		if _, again := m[key]; again {
			return nil, fmt.Errorf("the key %s is given twice", key)
		}
		m[key] = value
	}
	return m, nil
}

// changes sends a request whose result are changes.
func (x *ctl) changes(cmd *cobra.Command, r control.Request) error {
	var done control.Changes
	return x.do(cmd, r, &done, func() error { printChanges(cmd.OutOrStdout(), &done); return nil })
}

func (x *ctl) add() *cobra.Command {
	return command(&cobra.Command{
		Use: "add NAME KEY=VALUE ...", Short: "serve one more export", Args: cobra.MinimumNArgs(2),
		Long: `Serves one more export. The keys are those of an export's section in the configuration file, see nbd-server(5); exportname, which says what to serve, must be among them. Relative paths start where the server was started.`,
		Example: `  nbd ctl add disk2 exportname=/srv/disk2.img readonly=true
  nbd ctl add scratch exportname=memory:1G maxconnections=1`,
		RunE: runs(func(cmd *cobra.Command, args []string) error {
			k, err := keys(args[1:])
			if err != nil {
				return err
			}
			return x.changes(cmd, control.Request{Op: control.OpAdd, Export: args[0], Keys: k})
		}),
		ValidArgsFunction: completeAdd,
	})
}

// clients are the flags that say what becomes of clients.
type clients struct {
	drain, cut bool
}

func (w *clients) flags(c *cobra.Command) {
	c.Flags().BoolVar(&w.drain, "drain", false, "end the connections of the export when they have answered what was asked")
	c.Flags().BoolVar(&w.cut, "cut", false, "end the connections of the export at once")
	c.MarkFlagsMutuallyExclusive("drain", "cut") // for completion; PreRunE says it better
	c.PreRunE = func(*cobra.Command, []string) error {
		if w.drain && w.cut {
			return errors.New("--drain and --cut exclude each other: connections answer what was asked before they end, or they do not")
		}
		return nil
	}
}

// fill puts the flags into a request.
func (w *clients) fill(r *control.Request) {
	switch {
	case w.drain:
		r.Clients = control.Drain.String()
	case w.cut:
		r.Clients = control.Cut.String()
	}
}

func (x *ctl) change() *cobra.Command {
	var w clients
	c := &cobra.Command{
		Use: "change [OPTION ...] NAME [KEY=VALUE ...]", Short: "change an export", Args: cobra.MinimumNArgs(1),
		Long: `Gives an export other settings. Keys that are not named stay as they are; KEY= without a value takes one away. New clients find the change; for those that are there, see nbd-ctl(1) and --drain and --cut. If what is served changes, new clients are refused until the earlier ones have left.

Without any key, an export whose state is broken is opened anew.`,
		Example: `  nbd ctl change disk exportname=/srv/new.img --drain
  nbd ctl change disk readonly=true authfile=`,
		RunE: runs(func(cmd *cobra.Command, args []string) error {
			k, err := keys(args[1:])
			if err != nil {
				return err
			}
			r := control.Request{Op: control.OpChange, Export: args[0], Keys: k}
			w.fill(&r)
			return x.changes(cmd, r)
		}),
		ValidArgsFunction: x.completeChange,
	}
	w.flags(c)
	return command(c)
}

func (x *ctl) remove() *cobra.Command {
	var w clients
	c := &cobra.Command{
		Use: "remove [OPTION ...] NAME", Short: "serve an export no longer", Args: cobra.ExactArgs(1),
		Long: `Serves an export no longer. Clients that are there stay until they leave, unless --drain or --cut is given: then the command waits for their end, and when it returns the device is closed.`,
		RunE: runs(func(cmd *cobra.Command, args []string) error {
			r := control.Request{Op: control.OpRemove, Export: args[0]}
			w.fill(&r)
			return x.changes(cmd, r)
		}),
		ValidArgsFunction: x.completeNames,
	}
	w.flags(c)
	return command(c)
}

func (x *ctl) reload() *cobra.Command {
	return alone(&cobra.Command{
		Use: "reload", Short: "read the configuration again",
		Long: `Has the server read its configuration again, as SIGHUP does, and tells what has changed, or what is wrong with it. Exports that were added by "nbd ctl add" are removed, and what was changed by "nbd ctl change" is as the configuration says.`,
		RunE: runs(func(cmd *cobra.Command, _ []string) error {
			return x.changes(cmd, control.Request{Op: control.OpReload})
		}),
	})
}

func (x *ctl) certs() *cobra.Command {
	return alone(&cobra.Command{
		Use: "certs", Short: "read keys and certificates again",
		Long: `Has the server read the files of its key, its certificate and its authorities again, for new connections. Nothing else of the configuration is read.`,
		RunE: runs(func(cmd *cobra.Command, _ []string) error {
			if err := x.do(cmd, control.Request{Op: control.OpCerts}, nil, nil); err != nil {
				return err
			}
			return x.done(cmd, "")
		}),
	})
}

func (x *ctl) merge() *cobra.Command {
	wait := false
	c := &cobra.Command{
		Use: "merge [--wait] [NAME]", Short: "merge what exports with waitfile have collected", Args: cobra.MaximumNArgs(1),
		Long: `Merges the changes that an export with waitfile has collected into what it stands before; without a NAME, those of all exports, as SIGUSR1 does. Clients are served meanwhile. The command does not wait for the end: "nbd ctl list" shows how far the merge is, and the server's log tells how it ended. With --wait it waits, as long as it takes unless --timeout is given, and its exit status tells how the merge ended; a merge that is not waited for any more goes on.`,
		RunE: runs(func(cmd *cobra.Command, args []string) error {
			r := control.Request{Op: control.OpMerge, All: len(args) == 0, Wait: wait}
			if !r.All {
				r.Export = args[0]
			}
			if wait && !cmd.Flag("timeout").Changed {
				x.timeout = maxTimeout
			}
			list := []control.Merge{}
			return x.do(cmd, r, &list, func() error { printMerges(cmd.OutOrStdout(), list, wait); return nil })
		}),
		ValidArgsFunction: x.completeNames,
	}
	c.Flags().BoolVar(&wait, "wait", false, "wait for the end")
	return command(c)
}
