package supervise

import (
	"context"
	"log/slog"
	"net"
	"time"

	"nbd.example/nbd/kernel"
)

// Config is what a Supervisor works with.
type Config struct {
	Kernel kernel.Driver
	// Dir holds a file for each device that is kept, so that another process can list
	// them and take them over. "" means /run/nbd.
	Dir string
	// Dial connects. Nil means that of a net.Dialer.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	Log  *slog.Logger // nil discards
	// Backoff between attempts to reconnect. The zero value is a good default.
	Backoff Backoff
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
	// must name the same export.
	URIs []string `json:"uris,omitempty"`
	// Serve is a chain that is served in this very process, in place of URIs. See
	// Local.
	Serve string `json:"serve,omitempty"`

	// Device is the kernel device, as /dev/nbd0. "" lets the kernel choose.
	Device string `json:"device,omitempty"`
	// Identifier names what is attached. Attaching the same identifier again returns
	// the device that has it. "" means the first URI, without credentials.
	Identifier string `json:"identifier,omitempty"`

	Connections int   `json:"connections,omitempty"` // 0 means 1
	BlockSize   int64 `json:"block_size,omitempty"`  // bytes; 0 means what the server prefers, within what the kernel takes
	Size        int64 `json:"size,omitempty"`        // bytes; 0 means what the server says; never more
	ReadOnly    bool  `json:"read_only,omitempty"`

	// Timeout is how long a request may take before its connection is declared dead.
	// 0 is the default, which the manual explains.
	Timeout time.Duration `json:"timeout,omitempty"`
	// OnFailure says what happens to requests while there is no connection.
	OnFailure Policy `json:"on_failure"`
	// ConnectTimeout bounds one attempt: dial and handshake. 0 means 10 s.
	ConnectTimeout time.Duration `json:"connect_timeout,omitempty"`

	TLS *TLSFiles `json:"tls,omitempty"`

	// Swap prepares the process for a device that is swapped on.
	Swap bool `json:"swap,omitempty"`
	// ExportName makes the handshake use NBD_OPT_EXPORT_NAME, for servers that cannot GO.
	ExportName bool `json:"export_name,omitempty"`
	// Client flags of the kernel.
	Client kernel.ClientFlags `json:"client_flags,omitempty"`
}

// Policy is what becomes of requests while there is no connection.
type Policy struct {
	// Fail fails them at once. Otherwise they wait: for Limit, and if that is 0, for ever.
	Fail  bool          `json:"fail,omitempty"`
	Limit time.Duration `json:"limit,omitempty"`
}

// TLSFiles name the files that TLS needs. The server's name is verified, always.
type TLSFiles struct {
	Cert string `json:"cert,omitempty"`
	Key  string `json:"key,omitempty"`
	CA   string `json:"ca,omitempty"`   // "" means those of the system
	Name string `json:"name,omitempty"` // of the server; "" means the host's
	// Priority is what the reference calls a priority string.
	Priority string `json:"priority,omitempty"`
}
