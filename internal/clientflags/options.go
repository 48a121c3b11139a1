package clientflags

import (
	"slices"
	"strings"
	"time"
)

// Option is one option.
type Option struct {
	Short byte   // 0 for none
	Long  string // "" for none
	Also  string // another long form; "" for none
	Arg   string // the name of its argument, "" for none
	Help  string // a line for --help
	More  string // what the manual says in addition; "" for nothing
	// Tab is the key in nbdtab; "" if there is none. A key without an argument is a flag.
	Tab string
	// Old says that the reference has it: then its name may be cut short as if
	// there were no newer ones.
	Old bool
	// Of names the commands that take it, by commas; "" if it is for attaching, and "*"
	// if it is for everything.
	Of string
	// Words is what the argument may be; nil for anything.
	Words []string
	// Hidden options are those that scripts write.
	Hidden bool

	set setter
}

// Options returns the table of options, in the order of the manual.
func Options() []Option { return options }

// The files and folders that are meant where none is named.
const (
	DefaultTab   = "/etc/nbdtab"
	DefaultState = "/run/nbd"
)

// DefaultPort is the one of the protocol.
const DefaultPort = "10809"

var (
	levels  = []string{"debug", "info", "warn", "error"}
	formats = []string{"text", "logfmt", "json"}
	shells  = []string{"bash", "zsh", "fish"}
)

// options is joined from its parts, so that each can be read.
var options = join(export, device, failure, process, tlsOptions, actions, others)

func join(parts ...[]Option) (all []Option) {
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}

// export is about which bytes are attached.
var export = []Option{
	{Short: 'N', Long: "name", Arg: "NAME", Old: true, Help: "the export's name; without it the default export",
		set: func(f *Flags, v string) error { f.Name = v; return nil }},
	{Short: 'u', Long: "unix", Old: true, Tab: "unix", Help: "the server listens on a unix socket, whose path stands in place of host and port",
		set: boolean(func(f *Flags) *bool { return &f.Unix })},
	{Long: "also", Arg: "HOST[:PORT]", Tab: "also", Help: "another address of the same export, tried when those before do not answer; can be given again",
		More: "With URIs, name several of them. An address is taken only if the export there is the same: its size, its flags, and its instance where the servers tell one.", set: addAddress},
	{Long: "any-instance", Tab: "any-instance", Help: "connect anew also to another instance of the export, if its size and flags are the same",
		More: "A server like ours tells which instance of an export it has, so that a memory disk that was lost with its server, or a copy, is never put under a device that is in use. This option is for copies that somebody else keeps equal.",
		set:  boolean(func(f *Flags) *bool { return &f.AnyInstance })},
	{Long: "serve", Arg: "CHAIN", Help: "attach a file, a block device or another chain, served by this program itself",
		More: "There is no network then: the kernel and a server in the same process speak over a socket pair, as losetup and qemu-nbd -c do. --chains lists what chains are made of. SIGTERM detaches the device as soon as nobody uses it, and then ends this process; should it be killed, requests wait until the same chain is attached again, if it is still the same then.",
		set:  text(func(f *Flags) *string { return &f.Serve })},
	{Short: 'B', Long: "size", Arg: "BYTES", Old: true, Tab: "size", Help: "size of the device, if it is to be smaller than the export; k, M, G or T may stand behind it",
		set: size(func(f *Flags) *int64 { return &f.Size })},
	{Short: 'R', Long: "readonly", Old: true, Tab: "readonly", Help: "attach it read-only, also if the server would allow writes",
		set: boolean(func(f *Flags) *bool { return &f.ReadOnly })},
	{Short: 'C', Long: "connections", Arg: "N", Old: true, Tab: "conns", Help: "how many connections to make; the default is 1",
		More: "More than one need a server that says that it can (NBD_FLAG_CAN_MULTI_CONN); with another, one is made, and a warning says so. They help where one processor is not enough, or one TCP connection.", set: setConnections},
	{Short: 'P', Long: "preinit", Old: true, Tab: "preinit", Help: "do not negotiate; for servers that begin with the requests. Needs -size",
		More: "Nothing is known of such an export, so the device is not kept, as with --no-supervise, and has one connection.", set: boolean(func(f *Flags) *bool { return &f.PreInit })},
	{Short: 'g', Long: "no-optgo", Old: true, Tab: "no_optgo", Help: "ask by NBD_OPT_EXPORT_NAME, for servers that lose their step at NBD_OPT_GO",
		set: boolean(func(f *Flags) *bool { return &f.NoOptGo })},
}

// device is about the kernel device.
var device = []Option{
	{Short: 'b', Long: "block-size", Arg: "BYTES", Old: true, Tab: "bs", Help: "logical block size of the device: 512, 1024, 2048 or 4096",
		More: "On machines with larger memory pages, up to their size. The default is 512, or the server's minimum if that is more. What the server prefers is not asked: the block size decides how a partition table is read, and most were written for 512. What the export has at its end beyond whole blocks is not part of the device.", set: setBlockSize},
	{Short: 'i', Long: "identifier", Arg: "TEXT", Old: true, Tab: "identifier", Help: "what the device is known by; the default is the export's URI",
		More: "Attaching the same identifier again does not attach a second device, but names the one that is there; or fails, if no process keeps that one, and one should. Devices of --no-supervise are known by it from Linux 5.14 on. It is shown by list, in /sys/block/nbdN/backend, and as a link in /dev/disk/by-nbd.",
		set:  text(func(f *Flags) *string { return &f.Identifier })},
	{Short: 's', Long: "swap", Old: true, Of: ",supervisor", Tab: "swap", Help: "prepare for swapping on the device",
		More: "The process that keeps the device locks its memory, and the system will not choose it when memory is short. With TLS the device can still hang under pressure, since the network's memory is not reserved for the process that decrypts; swapping with TLS is done at your own risk. What --serve serves goes past the page cache then (direct), which would take as much memory as swapping sets free; a file system that cannot do that is refused.",
		set:  boolean(func(f *Flags) *bool { return &f.Swap })},
	{Long: "raise-reserve", Of: ",supervisor", Tab: "raise-reserve", Help: "with -swap, raise the system's vm.min_free_kbytes if it is too low",
		More: "Linux 6.1 keeps so little memory for the network's packets that swapping over NBD comes to a halt on small machines. Without this option, a warning says what to set.",
		set:  boolean(func(f *Flags) *bool { return &f.RaiseReserve })},
	{Long: "destroy-on-disconnect", Tab: "destroy", Help: "remove the device's node when it is detached", set: boolean(func(f *Flags) *bool { return &f.Destroy })},
	{Long: "disconnect-on-close", Tab: "disconnect-on-close", Help: "detach when the last program closes the device",
		More: "Of little use where udev runs: it opens each new device to look what is on it, and may be the last one to close it, so that the device is gone at once.",
		set:  boolean(func(f *Flags) *bool { return &f.CloseOnClose })},
	{Short: 'L', Long: "nonetlink", Old: true, Tab: "nonetlink", Help: "use the kernel's old interface (ioctl)",
		More: "For kernels and containers without the netlink interface. The device lives as long as this process, which cannot be replaced, and cannot change its connections without a gap.",
		set:  boolean(func(f *Flags) *bool { return &f.NoNetlink })},
	{Long: "netlink", Old: true, Hidden: true, Help: "use netlink; the default", set: func(f *Flags, _ string) error { f.NoNetlink = false; return nil }},
}

// failure is about time.
var failure = []Option{
	{Short: 't', Long: "timeout", Arg: "TIME", Old: true, Tab: "timeout", Help: "how long one request may take before its connection is declared dead",
		More: "Seconds, or a duration such as 1m30s; the same holds for all times. The default is 30 s. " +
			"The kernel sends a request again only when this time has passed since it was sent, however fast there was a new connection: so it is the longest that a program hangs over the restart of a server. " +
			"But a server that needs longer for one request is taken for dead, though it may only be slow; then the request is sent again on another connection. " +
			"With 0 a server is never too slow.", set: setTimeout},
	{Long: "on-failure", Arg: "WHAT", Tab: "on-failure", Words: []string{"wait", "error"}, Help: "what requests do while there is no connection: wait[:LIMIT] or error; the default is wait",
		More: "With wait, reads and writes wait until a server is back, however long that takes, or for LIMIT, and fail only then. With error they fail at once, as soon as the last connection is dead.", set: setOnFailure},
	{Short: 'T', Long: "dead-timeout", Arg: "TIME", Old: true, Tab: "dead-timeout", Help: "the same as --on-failure=wait:TIME; 0 is error", set: setDeadTimeout},
	{Short: 'p', Long: "persist", Old: true, Tab: "persist", Help: "keep the device when connections die; this is the default, and without effect with -nonetlink and -preinit", set: boolean(func(f *Flags) *bool { return &f.Persist })},
	{Long: "no-supervise", Tab: "no-supervise", Help: "attach, and leave the device to itself: nobody makes new connections",
		More: "As the reference does: no process stays. Requests fail when the connections die; with --on-failure=wait they wait, for somebody who connects the device by other means or detaches it. -timeout has no default then: with one connection, a server is never too slow. What needs a process is refused (TLS, vsock, --serve); of what -swap prepares only the system's reserve is left (--raise-reserve).", set: boolean(func(f *Flags) *bool { return &f.NoSupervise })},
	{Long: "retry", Arg: "TIME", Tab: "retry", Help: "if no server can be reached at first, try again for so long",
		More: "Without it, nbd-client fails at once. Devices that nbd-client supervisor attaches by itself are tried for ever.",
		set:  seconds(func(f *Flags) *time.Duration { return &f.Retry })},
	{Long: "connect-timeout", Arg: "TIME", Tab: "connect-timeout", Help: "bounds one attempt to connect and negotiate; the default is 10 s",
		More: "It is one time for all of it: connecting, to whichever of the addresses of its name, TLS, and the negotiation. The next attempt begins after a pause that grows from 0.1 s to 5 s.",
		set:  seconds(func(f *Flags) *time.Duration { return &f.ConnectTimeout })},
}

// process is about the process that keeps the device.
var process = []Option{
	{Short: 'n', Long: "nofork", Old: true, Of: ",supervisor", Help: "stay in the foreground",
		More: "SIGINT then detaches the device.", set: boolean(func(f *Flags) *bool { return &f.Foreground })},
	{Short: 'm', Long: "systemd-mark", Old: true, Of: ",supervisor", Help: "mark the process so that systemd spares it at shutdown: its name begins with @",
		More: "For the root file system. It has an effect only on processes that were started from the initramfs.", set: boolean(func(f *Flags) *bool { return &f.SystemdMark })},
	{Long: "ignore-term", Of: ",supervisor", Help: "ignore SIGTERM, for systems that send it to everybody at shutdown", set: boolean(func(f *Flags) *bool { return &f.IgnoreTerm })},
	{Short: 'S', Long: "sdp", Old: true, Tab: "sdp", Help: "refused: Linux has no Sockets Direct Protocol any more",
		set: boolean(func(f *Flags) *bool { return &f.SDP })},
	{Long: "nbdtab", Arg: "FILE", Of: "*", Help: "read this table instead of " + DefaultTab, set: text(func(f *Flags) *string { return &f.TabFile })},
	{Long: "state-dir", Arg: "DIR", Of: "*", Help: "folder for the state of kept devices, instead of " + DefaultState, set: text(func(f *Flags) *string { return &f.StateDir })},
	{Long: "log-level", Arg: "LEVEL", Of: "*", Words: levels, Help: "debug, info, warn or error", set: oneOf(levels, func(f *Flags) *string { return &f.LogLevel })},
	{Long: "log-format", Arg: "FORMAT", Of: "*", Words: formats, Help: "text, logfmt or json",
		More: "The default is text. In the background, the log goes to syslog.", set: oneOf(formats, func(f *Flags) *string { return &f.LogFormat })},
}

// tlsOptions are about TLS.
var tlsOptions = []Option{
	{Short: 'x', Long: "enable-tls", Old: true, Tab: "tls", Help: "TLS or nothing; each of the following options means this as well", set: boolean(func(f *Flags) *bool { return &f.TLS })},
	{Short: 'F', Long: "certfile", Arg: "FILE", Old: true, Tab: "certfile", Help: "the client's certificate", set: text(func(f *Flags) *string { return &f.Cert })},
	{Short: 'K', Long: "keyfile", Arg: "FILE", Old: true, Tab: "keyfile", Help: "the client's private key; without -certfile, the certificate is in the same file", set: text(func(f *Flags) *string { return &f.Key })},
	{Short: 'A', Long: "cacertfile", Arg: "FILE", Old: true, Tab: "cacertfile", Help: "whom to trust to certify the server; without it, those whom the system trusts",
		set: text(func(f *Flags) *string { return &f.CA })},
	{Short: 'H', Long: "tlshostname", Arg: "NAME", Old: true, Tab: "tlshostname", Help: "the server's name in its certificate, if it is not the host", set: text(func(f *Flags) *string { return &f.TLSHostname })},
	{Short: 'y', Long: "priority", Arg: "TEXT", Old: true, Tab: "priority", Help: "priority string of GnuTLS; versions are obeyed, the rest is Go's choice", set: text(func(f *Flags) *string { return &f.Priority })},
	{Long: "tls-without-verification-anyone-can-be-the-server", Tab: "tls-without-verification-anyone-can-be-the-server",
		Help: "do not verify the server's certificate", More: "What travels is then hidden from those who only listen, and from nobody else.",
		set: boolean(func(f *Flags) *bool { return &f.Insecure })},
}

// actions do something else than to attach.
var actions = []Option{
	{Short: 'd', Long: "disconnect", Arg: "DEVICE", Old: true, Help: "detach the device, also if it is in use",
		More: "The command detach refuses to detach a device that is in use.", set: act(Disconnect, checkDevice)},
	{Short: 'c', Long: "check", Arg: "DEVICE", Old: true, Help: "print the number of the process that attached the device; the exit status is 1 if it is not attached",
		More: "A partition stands for its device; what is no NBD device is not attached, nor is one that is free, and that somebody has open.",
		set:  act(Check, anyName)},
	{Short: 'l', Long: "list", Old: true, Help: "list the exports of the server", set: act(Exports, nil)},
	{Long: "chains", Help: "list the back ends and layers that a chain is made of", set: act(Chains, nil)},
	{Long: "completion", Arg: "SHELL", Words: shells, Help: "print the completions for bash, zsh or fish",
		set: func(f *Flags, v string) error {
			f.Action = Completion
			return oneOf(shells, func(f *Flags) *string { return &f.Shell })(f, v)
		}},
	{Long: "systemd-generator", Hidden: true, Help: "write units for the devices of nbdtab to the first of three folders, see systemd.generator(7)", set: act(Generator, nil)},
	{Long: "udev", Arg: "DEVICE", Hidden: true, Help: "print the properties of the device that udev's rules need", set: act(Udev, checkDevice)},
	{Short: 'V', Long: "version", Old: true, Of: "*", Help: "print the version", set: act(Version, nil)},
	{Short: 'h', Long: "help", Old: true, Of: "*", Help: "print this text", set: act(Help, nil)},
}

// others are options of commands.
var others = []Option{
	{Long: "json", Of: "list,status", Help: "print JSON", set: boolean(func(f *Flags) *bool { return &f.JSON })},
	{Long: "force", Of: "detach", Help: "detach also what is in use: requests that wait fail, file systems on it break",
		More: "It always ends, and says who still holds the device.", set: boolean(func(f *Flags) *bool { return &f.Force })},
}

// tabOnly are keys of nbdtab that the command line says by operands, or not at all.
var tabOnly = []Option{
	{Tab: "port", Arg: "PORT", Help: "the server's TCP port; the default is " + DefaultPort, set: setPort},
	{Tab: "auto", Help: "attach the device at boot, even if nothing mounts it, and let nbd-client supervisor keep it",
		set: boolean(func(f *Flags) *bool { return &f.Auto })},
}

// TabOptions returns what nbdtab knows, by the names of the keys.
func TabOptions() []Option {
	var list []Option
	for _, o := range append(append([]Option{}, options...), tabOnly...) {
		if o.Tab != "" {
			list = append(list, o)
		}
	}
	slices.SortFunc(list, func(a, b Option) int { return strings.Compare(a.Tab, b.Tab) })
	return list
}

// CommandInfo describes a command.
type CommandInfo struct {
	Name     Action
	Operands string // as the usage has them
	Help     string // a line for --help
	More     string // what the manual says in addition
}

// Commands returns the commands, in the order of the manual.
func Commands() []CommandInfo { return commands }

var commands = []CommandInfo{
	{List, "", "list the attached devices",
		"Device, export, size, state, the process that keeps it, since when it is attached, requests in flight, and how often it was connected anew. In flight are those that were sent, and wait for an answer; the kernel does not tell how many wait for a connection. Devices that nobody keeps are listed as well. With --json one object is printed, whose devices have the same fields; sizes are in bytes, times as in RFC 3339."},
	{Status, "DEVICE", "print the state of a device",
		"The exit status is 0 if it is attached and connected, 1 if it is not attached, 2 if that could not be found out, and 3 if it is attached and has no connection: also after the end of a process that its connections went through (see WHEN THIS PROCESS ENDS). Of a device that no process keeps nobody watches the connections: they count as alive if they were when its process ended. It names who uses the device, also the processes that have it open."},
	{Detach, "DEVICE ...", "detach devices",
		"Returns when they and their partitions are really gone. A device that is mounted, swapped on, under another block device, or open, is not detached, and is named with those who use it; the exit status is then 5. A device may be named by its identifier as well."},
	{Resize, "DEVICE [BYTES]", "let a device take the size that its export has by now",
		"Devices that are kept grow by themselves when their connections are made anew, and when the server says that its export has grown. A size can be given, up to that of the export: then the device takes it and grows no further, until it is resized without one. A device never shrinks."},
	{Wait, "DEVICE ready|gone", "wait until a device can be used, or is gone; --timeout=TIME bounds the wait",
		"The exit status is 4 if the time was over before."},
	{Supervisor, "", "keep devices, as a service",
		"Attaches the devices of nbdtab that have the key auto, takes over those whose process has died, and keeps all those that later calls of nbd-client hand to it. It stays in the foreground. SIGTERM ends it; its devices stay attached, and wait for the next one."},
	{Upgrade, "[DEVICE ...]", "let the processes that keep devices start anew, from the program that is installed now",
		"The connections are handed on, and no request fails. Without a device, all processes are asked."},
}
