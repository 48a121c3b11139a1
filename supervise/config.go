package supervise

import (
	"context"
	"log/slog"
	"net"
	"os"
	"time"

	"nbd.example/nbd/kernel"
	"nbd.example/nbd/supervise/pass"
	"nbd.example/nbd/supervise/tlsfiles"
)

// DefaultDir is where supervisors keep their state, as long as the machine runs.
const DefaultDir = "/run/nbd"

// DefaultTimeout is the request timeout of devices whose Spec names none.
//
// It decides two things, which pull in opposite directions. A request that was sent on
// a connection which then died is sent again only when this time has passed since it
// was sent, however fast there was a new connection: nothing else makes the kernel
// send it again. So the time is the longest that a program hangs over a restart of the
// server. And a server that answers one request later than this is taken for dead,
// though it may only be slow: its connection is given up, and the request sent again
// on another. 30 s is what the kernel itself uses where it is told nothing, and what
// disks of other kinds have.
const DefaultTimeout = 30 * time.Second

// Config is what a Supervisor works with.
type Config struct {
	Kernel kernel.Driver // the caller's to close, after the Supervisor
	// Dir holds a file for each device that is kept, so that another process can list
	// them and take them over. It should be on a file system in memory: what is written
	// there must never wait for a device that is kept. "" means DefaultDir.
	Dir string
	// Dial connects. Nil means that of a net.Dialer, with keepalive and
	// TCP_USER_TIMEOUT.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Local serves Spec.Serve. Nil refuses such a Spec.
	Local func(ctx context.Context, chain string, readOnly bool) (Local, error)
	Log   *slog.Logger // nil discards. Its handler must not wait for a disk.
	// Backoff between attempts to reconnect. The zero value is a good default.
	Backoff Backoff
	// ResizeInterval is how often servers are asked whether an export has grown, and what
	// they did not say when the device was attached.
	// 0 means a minute, below 0 never.
	ResizeInterval time.Duration

	// Inherited are sockets of kernel devices that an earlier process has passed on, see
	// [Inherit], and that are in the Store, if there is one. Adopt looks for them. They are
	// the Supervisor's.
	Inherited []Socket
	// Store keeps sockets for a process that comes after this one. Nil for none.
	Store Store
	// Upgrade is called when a client of the control socket asks for the command
	// "upgrade": usually it calls [Supervisor.Reexec]. Nil refuses.
	Upgrade func(ctx context.Context) error
}

// Local is a server in this very process.
type Local interface {
	// Dial returns a connection to it, at the begin of the handshake: one end of a
	// socket pair, or another socket that the kernel takes.
	Dial(ctx context.Context) (net.Conn, error)
	// Close ends it. Its connections are dead then.
	Close() error
}

// Store keeps copies of sockets beyond the end of the process, as the file descriptor
// store of systemd does. Its methods are called from one goroutine.
type Store interface {
	Keep(name string, f *os.File) error // f is the caller's
	Drop(name string) error
}

// Socket is a kernel device's socket on its way from one process to the next.
type Socket = pass.Socket

// Inherit returns the sockets that this process got when it was started: by
// [Supervisor.Reexec], or from the file descriptor store of systemd. See [pass.Inherit].
func Inherit() []Socket { return pass.Inherit() }

// SystemdStore is the file descriptor store of the service manager, for a service with
// FileDescriptorStoreMax. It returns nil where there is none.
func SystemdStore() Store {
	if s := pass.Systemd(); s != nil {
		return s
	}
	return nil
}

// Backoff says how long to wait between attempts to connect: First, then twice as long
// each time up to Most, each drawn from between half of it and all of it.
type Backoff struct {
	First time.Duration // 0 means 100 ms
	Most  time.Duration // 0 means 5 s
}

// Spec says what is to be attached, and how it is to be kept. It is what state files
// and the control socket carry, so it holds text, and no secrets.
type Spec struct {
	// URIs name the export, at one or several servers that are tried in order. All
	// must serve the same bytes; see AnyInstance.
	URIs []string `json:"uris,omitempty"`
	// Serve is a chain that is served in this very process, in place of URIs. See
	// [Config.Local].
	Serve string `json:"serve,omitempty"`

	// Device is the kernel device, as /dev/nbd0. "" lets the kernel choose.
	Device string `json:"device,omitempty"`
	// Identifier names what is attached. Attaching the same identifier again returns
	// the device that has it. "" means the first URI, without credentials, or the
	// chain.
	Identifier string `json:"identifier,omitempty"`

	Connections int `json:"connections,omitempty"` // 0 means 1
	// BlockSize is the device's logical block size in bytes. 0 means 512, or the
	// server's minimum if that is more. What the server prefers is not asked: the
	// logical block size decides how a partition table is read, and most were written
	// for 512.
	BlockSize int64 `json:"block_size,omitempty"`
	Size      int64 `json:"size,omitempty"` // bytes; 0 means what the server says, and that it may grow; never more
	ReadOnly  bool  `json:"read_only,omitempty"`

	// Timeout is how long a request may take before its connection is declared dead.
	// 0 means [DefaultTimeout]; below 0 the kernel is told 0: a single connection is
	// then never declared dead for being slow.
	Timeout time.Duration `json:"timeout,omitempty"`
	// OnFailure says what happens to requests while there is no connection.
	OnFailure Policy `json:"on_failure"`
	// ConnectTimeout bounds one attempt: dial and handshake. 0 means 10 s.
	ConnectTimeout time.Duration `json:"connect_timeout,omitempty"`
	// Wait makes Attach try again, for as long as its context allows, where no server
	// can be reached at first.
	Wait bool `json:"wait,omitempty"`

	TLS *TLSFiles `json:"tls,omitempty"`
	// AnyInstance reconnects to whatever has the same size and flags, though the server
	// says that it is another instance of the export: for copies of one disk on several
	// servers, whose equality is somebody else's care.
	AnyInstance bool `json:"any_instance,omitempty"`

	// Swap says that the device will be swapped on. The program prepares its process for
	// that; the supervisor only remembers it.
	Swap bool `json:"swap,omitempty"`
	// Bare connections begin with the requests: nothing is negotiated, and nothing known of
	// the export but its Size. Only [Supervisor.AttachAlone] takes them.
	Bare bool `json:"bare,omitempty"`
	// ExportName makes the handshake use NBD_OPT_EXPORT_NAME, for servers that cannot GO.
	ExportName bool `json:"export_name,omitempty"`
	// Client flags of the kernel.
	Client kernel.ClientFlags `json:"client_flags,omitempty"`
}

// Policy is what becomes of requests while there is no connection.
type Policy struct {
	// Fail fails them at once. Otherwise they wait: for Limit, and if that is 0, for
	// ever. Either way the supervisor goes on connecting, and then the device works
	// again. Requests that were sent already fail or are sent again only after
	// Spec.Timeout.
	Fail  bool          `json:"fail,omitempty"`
	Limit time.Duration `json:"limit,omitempty"`
}

// TLSFiles name the files that TLS needs, by absolute paths.
type TLSFiles = tlsfiles.Files
