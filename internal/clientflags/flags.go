package clientflags

import "time"

// Action is what a command line asks for.
type Action string

// Actions. Those that are commands are called as the command is.
const (
	Attach     Action = ""            // attach a device
	Exports    Action = "-list"       // ask a server what it exports
	Check      Action = "-check"      // is a device attached?
	Disconnect Action = "-disconnect" // the reference's detach
	Version    Action = "-version"
	Help       Action = "-help"
	Completion Action = "-completion"
	Generator  Action = "-generator" // for systemd
	Chains     Action = "-chains"
	Udev       Action = "-udev" // for the rules of udev

	List       Action = "list"
	Status     Action = "status"
	Detach     Action = "detach"
	Resize     Action = "resize"
	Wait       Action = "wait"
	Supervisor Action = "supervisor"
	Upgrade    Action = "upgrade"
)

// Never is the Timeout that was written as 0.
const Never time.Duration = -1

// Flags is what a command line says, or a line of nbdtab.
type Flags struct {
	Action Action

	// URIs are the servers' addresses as NBD URIs, in the order in which to try them.
	URIs []string
	// Host and Port are those of the old form; Host is the path of a socket if Unix is
	// set. Also holds further addresses for the same export: host or host:port.
	Host, Port string
	Unix       bool
	Also       []string
	// Name is the export's; "" is the default export.
	Name string
	// Serve is a chain that this program serves itself.
	Serve string
	// Tab is the name of a device in nbdtab that is to be attached.
	Tab string
	// Device is the kernel device as it was written; "" lets the kernel choose.
	Device string
	// Devices are the operands of commands.
	Devices []string
	// NewSize is the second operand of resize, in bytes; 0 asks the server.
	NewSize int64
	// Until is the second operand of wait: "ready" or "gone".
	Until string
	// Dirs are the operands of a generator.
	Dirs []string
	// Shell is whose completions are wanted.
	Shell string

	BlockSize      int64         // bytes; 0: what the server prefers
	Size           int64         // bytes; 0: what the server says
	Connections    int           // 0: one
	Timeout        time.Duration // 0: the default; Never
	ConnectTimeout time.Duration // 0: the default
	Retry          time.Duration // 0: do not
	// OnFailure is "" (the default, to wait), "wait" or "error". Limit bounds the
	// wait; 0 is for ever.
	OnFailure string
	Limit     time.Duration

	ReadOnly     bool
	Persist      bool // accepted; it is the default
	PreInit      bool
	Swap         bool
	RaiseReserve bool
	SDP          bool
	SystemdMark  bool
	IgnoreTerm   bool
	Foreground   bool
	NoNetlink    bool
	NoSupervise  bool
	NoOptGo      bool
	Identifier   string
	AnyInstance  bool
	Destroy      bool // the node goes with the attachment
	CloseOnClose bool // the last one who closes the device detaches it

	TLS         bool // also set by each of the following
	Cert, Key   string
	CA          string
	TLSHostname string
	Priority    string
	Insecure    bool // TLS without verification

	Auto bool // of nbdtab: attach it at boot

	JSON  bool
	Force bool
	// TabFile is the nbdtab to read, StateDir where state is kept; "" for the usual.
	TabFile, StateDir string
	LogLevel          string
	LogFormat         string

	// Warnings are about what was accepted, but should be written differently.
	Warnings []string

	settings []setting
}

// setting is one option with its value, as it was given.
type setting struct {
	option *Option
	value  string
}

// Over returns the settings of f on top of those of base, a line of nbdtab: what the
// command line says holds. The operands are those of base, but Tab, Device and Action
// stay as they are.
func (f *Flags) Over(base *Flags) *Flags {
	out := &Flags{
		Action: f.Action, Tab: f.Tab, Device: f.Device, Devices: f.Devices, Host: base.Host, Port: base.Port, URIs: base.URIs,
		Name: base.Name, Serve: base.Serve, Warnings: append(append([]string{}, base.Warnings...), f.Warnings...),
	}
	if out.Device == "" {
		out.Device = base.Device
	}
	for _, from := range []*Flags{base, f} {
		for _, s := range from.settings {
			// Each value was accepted before, and does not depend on the others.
			_ = s.option.set(out, s.value)
			out.settings = append(out.settings, s)
		}
	}
	return out
}

// Set gives an option of nbdtab its value, "" for a flag.
func (f *Flags) Set(o *Option, value string) error {
	if err := o.set(f, value); err != nil {
		return err
	}
	f.settings = append(f.settings, setting{o, value})
	return nil
}

// UsesTLS reports whether TLS is wanted: by -enable-tls, or by any option about it.
func (f *Flags) UsesTLS() bool {
	return f.TLS || f.Cert != "" || f.Key != "" || f.CA != "" || f.TLSHostname != "" || f.Priority != "" || f.Insecure
}
