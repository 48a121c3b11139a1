package serverflags

import (
	"cmp"
	"fmt"
	"io"
	"os"
	"runtime"
	"slices"
	"strings"
)

// Flags is what a command line says.
type Flags struct {
	// Listen is the address of the first operand; nil if there is none, or if it is one
	// of another kind than [address@]port: Address.
	Listen  *Listen
	Address string
	// Inetd says that the port is 0: the client is on standard input.
	Inetd bool
	// File is the second operand, a file or a chain; "" if there is none.
	File string
	// Size is the third operand in bytes; 0 if there is none.
	Size int64

	// Timeout ends idle connections, in seconds; 0 is never.
	Timeout int
	// OldStyle says that antique clients come to the first operand.
	OldStyle bool
	// Addresses are further ones to listen on.
	Addresses []string

	// Control is the path of the control socket; "" if none was named.
	Control string

	ReadOnly    bool
	MultiFile   bool
	CopyOnWrite bool
	// Config is the configuration file; "" if none was named.
	Config string
	// PIDFile is where to write the number of the process; "" for nowhere.
	PIDFile string
	// AuthFile is the list of clients; "" if none was named.
	AuthFile string
	// Section is the name of the section to print; "" for none.
	Section        string
	MaxConnections int
	// Foreground says that -n was given, Debug that -d was.
	Foreground bool
	Debug      bool
	Version    bool
	Help       bool
	Chains     bool
	// Completion is the shell whose completions are wanted; "" for none.
	Completion string
	// Swap says that clients swap on this machine.
	Swap  bool
	Check bool
	// Dump is "", "keyfile" or "json".
	Dump string
	// LogFormat is "", "text", "logfmt" or "json".
	LogFormat string
	// LogLevel is "", "debug", "info", "warn" or "error".
	LogLevel string
}

// AllAddresses returns Addresses and Address.
func (f *Flags) AllAddresses() []string {
	if f.Address == "" {
		return f.Addresses
	}
	return append(slices.Clone(f.Addresses), f.Address)
}

// Listen is where to listen.
type Listen struct {
	Host string // an address or a host name; "" for all addresses
	Port string // a number, or the name of a service
}

// Option is one option.
type Option struct {
	Short byte // 0 for none
	Long  string
	Also  string // another long form; "" for none
	Arg   string // the name of its argument, "" for none, in [] if it may be left out
	Help  string // a line for --help
	More  string // what the manual says in addition; "" for nothing
	// field returns a pointer to where the value goes: *bool, *string, *int or, for
	// what may be repeated, *[]string.
	field func(*Flags) any
	words []string // what the argument may be; nil for anything; the first one is meant if it is left out
}

// Options is the table of options, in the order of the manual.
func Options() []Option { return options }

var options = []Option{
	{Short: 'r', Long: "read-only", Help: "serve the file read-only", field: func(f *Flags) any { return &f.ReadOnly }},
	{Short: 'm', Long: "multi-file", Help: "serve several files as one: FILE.0, FILE.1 and so on", field: func(f *Flags) any { return &f.MultiFile }},
	{Short: 'c', Long: "copy-on-write", Help: "keep what a client writes in a diff that is gone when it disconnects", field: func(f *Flags) any { return &f.CopyOnWrite }},
	{Short: 'C', Long: "config-file", Arg: "FILE", Help: "read this configuration instead of " + DefaultConfig, field: func(f *Flags) any { return &f.Config },
		More: "The configuration is read, and its exports are served, also if an export is given on the command line. In that case it may be empty or missing: that is the way to have none."},
	{Short: 'p', Long: "pid-file", Arg: "FILE", Help: "write the number of the process that serves to this file", field: func(f *Flags) any { return &f.PIDFile },
		More: "The file is there when nbd-server has gone to the background, and is removed when the server ends. Without the option, a server in the background that root has started writes " + DefaultPID + ", if it can: there init scripts look for it."},
	{Short: 'l', Long: "authorize-file", Arg: "FILE", Help: "list of the clients that may connect, instead of " + DefaultAuth, field: func(f *Flags) any { return &f.AuthFile },
		More: "It is for the export on the command line; the format is that of authfile in nbd-server(5). If the file does not exist, everybody may connect; if it is empty, nobody."},
	{Short: 'o', Long: "output-config", Arg: "NAME", Help: "print a configuration section for the export on the command line, and exit", field: func(f *Flags) any { return &f.Section },
		More: "Where it is served stands above it, in comments: that belongs into the section [generic]."},
	{Short: 'M', Long: "max-connections", Also: "max-connection", Arg: "N", Help: "how many connections may be open at the same time", field: func(f *Flags) any { return &f.MaxConnections },
		More: "With an export on the command line it is that export's limit, else that of the whole server."},
	{Short: 'a', Long: "idle-time", Arg: "SECONDS", Help: "end connections to the file on the command line that are idle for so long", field: func(f *Flags) any { return &f.Timeout }},
	{Short: 'n', Long: "nodaemon", Help: "stay in the foreground", field: func(f *Flags) any { return &f.Foreground }},
	{Short: 'd', Long: "dont-fork", Help: "stay in the foreground and log in detail", field: func(f *Flags) any { return &f.Debug },
		More: "The reference serves only one connection then; this server does not differ from -n --log-level=debug."},
	{Short: 'V', Long: "version", Help: "print the version and exit", field: func(f *Flags) any { return &f.Version }},
	{Short: 'h', Long: "help", Help: "print this text and exit", field: func(f *Flags) any { return &f.Help }},
	{Long: "listen", Arg: "ADDRESS", Help: "listen on this address, too: HOST:PORT, unix:PATH or vsock:PORT; may be repeated", field: func(f *Flags) any { return &f.Addresses },
		More: "It adds to the other addresses, and takes the place of the default one. See listen in nbd-server(5)."},
	{Long: "control", Arg: "PATH", Help: "listen on this unix socket for nbd ctl, which looks at the server and changes it", field: func(f *Flags) any { return &f.Control },
		More: "It has precedence over control in nbd-server(5), where more is said of it."},
	{Long: "oldstyle", Help: "serve the file on the command line to clients of before 2011, on the port of the first operand", field: func(f *Flags) any { return &f.OldStyle },
		More: "The port then speaks the protocol's oldstyle negotiation, and nothing else. With port 0 the client on standard input is an antique one."},
	{Long: "swap", Help: "prepare for clients that swap on this very machine: lock memory, and bound what is used", field: func(f *Flags) any { return &f.Swap },
		More: "See swap in nbd-server(5). As in: nbd-server --swap unix:/run/swap.sock file:/srv/swap,direct"},
	{Long: "chains", Help: "list the back ends and layers that a chain is made of, and exit", field: func(f *Flags) any { return &f.Chains }},
	{Long: "completion", Arg: "SHELL", Help: "print the completions for bash, zsh or fish, and exit", words: []string{"bash", "zsh", "fish"}, field: func(f *Flags) any { return &f.Completion },
		More: "As in: nbd-server --completion bash > /etc/bash_completion.d/nbd-server"},
	{Long: "check-config", Help: "report every error in the configuration, open nothing, and exit", field: func(f *Flags) any { return &f.Check },
		More: "Here, unknown and misplaced keys are errors; a server that starts only warns of them, because the reference passes over them in silence. The exit status is 0 if there are no errors."},
	{Long: "dump-config", Arg: "[FORMAT]", Help: "print the effective configuration, as keyfile or json, and exit", words: []string{"keyfile", "json"}, field: func(f *Flags) any { return &f.Dump }},
	{Long: "log-format", Arg: "FORMAT", Help: "text, logfmt or json", words: []string{"text", "logfmt", "json"}, field: func(f *Flags) any { return &f.LogFormat },
		More: "The default is text. In the background, the log goes to syslog."},
	{Long: "log-level", Arg: "LEVEL", Help: "debug, info, warn or error", words: []string{"debug", "info", "warn", "error"}, field: func(f *Flags) any { return &f.LogLevel }},
}

// The files that are meant where none is named, but on Windows; see [Files]. The last one
// is for a server in the background alone.
const (
	DefaultConfig = "/etc/nbd-server/config"
	DefaultAuth   = "/etc/nbd-server/allow"
	DefaultPID    = "/var/run/nbd-server.pid"
)

// Files returns the paths of the files that are meant where none is named: on
// Windows they are in the folder for programs' data, elsewhere [DefaultConfig] and
// [DefaultAuth].
func Files() (config, auth string) { return files(runtime.GOOS, os.Getenv("ProgramData")) }

func files(system, programData string) (config, auth string) {
	if system != "windows" {
		return DefaultConfig, DefaultAuth
	}
	dir := cmp.Or(programData, `C:\ProgramData`) + `\nbd-server\`
	return dir + "config", dir + "allow"
}

// Usage is the first line of help.
const Usage = "nbd-server [option ...] [[address@]port [file [size]]]"

// Forms returns how the option is written, such as "-C FILE, --config-file=FILE".
func (o Option) Forms() string {
	long := "--" + o.Long
	switch {
	case strings.HasPrefix(o.Arg, "["):
		long += "[=" + strings.Trim(o.Arg, "[]") + "]"
	case o.Arg != "":
		long += "=" + o.Arg
	}
	if o.Short == 0 {
		return long
	}
	return strings.TrimSpace(fmt.Sprintf("-%c %s", o.Short, o.Arg)) + ", " + long
}

// WriteHelp writes the usage text.
func WriteHelp(w io.Writer) error {
	return writeHelp(w, runtime.GOOS, os.Getenv("ProgramData"))
}

func writeHelp(w io.Writer, system, programData string) error {
	config, auth := files(system, programData)
	here := strings.NewReplacer(DefaultConfig, config, DefaultAuth, auth)
	var b strings.Builder
	fmt.Fprintf(&b, "Usage: %s\n\n", Usage)
	b.WriteString(`Serves files, block devices and memory as network block devices.

  address   an IPv4 or IPv6 address or a host name to listen on; all if left out
  port      the port to listen on; 0: the client is on standard input (inetd);
            or another kind of address: unix:PATH, vsock:PORT
  file      a file, a block device, or a chain such as memory:1G
  size      how many bytes to serve; may end in k, M, G or T

`)
	for _, o := range options {
		fmt.Fprintf(&b, "  %s\n        %s\n", o.Forms(), here.Replace(o.Help))
	}
	if system == "windows" {
		b.WriteString("\n\"nbd-server service\" makes the server a service of Windows, and tells more about it.\n")
	}
	b.WriteString("\nSee nbd-server(8), and nbd-server(5) for the configuration file.\n")
	_, err := io.WriteString(w, b.String())
	return err
}
