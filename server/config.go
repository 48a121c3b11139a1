package server

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"time"

	"nbd.example/nbd/block"
	"nbd.example/nbd/handshake"
	"nbd.example/nbd/proto"
	"nbd.example/nbd/transmission"
)

// Client is who asks for an export.
type Client struct {
	// Addr is the address that the connection comes from.
	Addr net.Addr
	// TLS is nil on a plain connection.
	TLS *tls.ConnectionState
}

// Export describes what is served under one name. It is a description, not a
// device: Open makes the device. A Server keeps a pointer to it, so it must not be
// changed once it was handed over.
type Export struct {
	Name        string // "" is the default export
	Description string // told to clients that ask

	// Open opens the device of the export. If Private is false it is called
	// when the export is added to the server, with a zero Client, and all its
	// connections share the device. If Private is true it is called for each
	// connection that asks for the export, with its Client, and the device is
	// closed with the connection; such calls may be concurrent.
	//
	// It may be called while the device of the export's earlier settings is still
	// open. If that is in the way it must fail with an error that wraps the
	// system's EBUSY or EAGAIN (Windows: a sharing or lock violation); then the
	// earlier device is closed first and Open called again. It must not keep ctx.
	Open    func(ctx context.Context, c Client) (*block.Device, error)
	Private bool

	// Probe has the device of a private export opened and closed again, with a zero
	// Client, when the export is added, or its Settings change: what cannot be opened is
	// refused then, as with a shared export, and not when the first client comes.
	Probe bool

	// Share joins connections of a private export: those for which it returns
	// the same text use one device, which is opened for the first of them and
	// closed behind the last, as long as Settings stay the same. Nil gives each
	// connection a device of its own.
	Share func(c Client) string

	// Begin is called for each connection that asks for the export, behind the
	// barriers and before a device is opened for it. An error refuses the client.
	// The function that it returns, if it is not nil, is called when the connection
	// has let go of the device, and the device is closed if nobody else has it. The
	// time that Begin and Open take is not counted in HandshakeTimeout. The context of
	// Begin is done also when the client hangs up, where the system tells. Nil if
	// there is nothing to do. What it does belongs into Settings, too, but for what
	// changes nothing about the device, such as its limits: that is for BeginSettings,
	// and connections of before a change and behind it go on sharing a device.
	Begin         func(ctx context.Context, c Client) (end func(), err error)
	BeginSettings string

	// Settings identifies the effective settings, that is, all that decides what
	// Open opens. An export that is configured again with equal Settings keeps its
	// device.
	Settings string

	ReadOnly   bool                    // offer it read-only whatever the device can
	Rotational bool                    // set NBD_FLAG_ROTATIONAL whatever the device says
	Hide       proto.TransmissionFlags // never offered, though the device could
	MinBlock   uint32                  // advertised minimum block size in bytes, a power of two up to 64 KiB; 0 means 1

	MaxConnections int // 0 means no limit
	// IdleTimeout ends a connection that has asked for nothing, and had nothing
	// to wait for, for so long. 0 means never.
	IdleTimeout time.Duration
	// Tap is told of every request of the export's connections. Nil for none.
	// Exports whose Taps are equal (==) are told to the same one.
	Tap transmission.Tap
	// Origin is the caller's own, to find again what it made an export of. See
	// [Server.Exports].
	Origin     any
	RequireTLS bool   // SELECTIVETLS: this export only over TLS
	Allow      *Rules // nil lets everybody in
	// AllowNow, if it is not nil, is asked in place of Allow for each client that comes by a
	// network and wants the export, or a list. It may take its time, and may be called
	// concurrently. Allow then says only what it was when the export was described, so that
	// a reload can tell what has changed.
	AllowNow  func() *Rules
	NotListed bool     // leave it out of NBD_OPT_LIST
	Aliases   []string // further names, not listed: "" makes it the default export
}

// TLSMode is how the server treats TLS. proto.md, "Server-side requirements".
type TLSMode int

// TLS modes.
const (
	NoTLS     TLSMode = iota // NOTLS
	Selective                // SELECTIVETLS: offered; demanded for exports with RequireTLS
	Forced                   // FORCEDTLS
)

// KeepAlive says how a TCP connection finds out that its peer has vanished.
// The zero value of each field means the default; a negative one switches the
// probes, or the time limit, off. All of it is meaningless on other sockets.
type KeepAlive struct {
	// Idle is the time without traffic after which probes are sent. 0 means 30 s.
	Idle time.Duration
	// Interval is the time between probes. 0 means 10 s.
	Interval time.Duration
	// Count is the number of unanswered probes that end a connection. 0 means 6.
	// On Linux UserTimeout, where it is set, takes its place.
	Count int
	// UserTimeout is TCP_USER_TIMEOUT, which only Linux has: for so long may
	// sent data stay unacknowledged. 0 means 5 minutes. Linux counts the time in
	// which a client that is there keeps its window shut, too, so that a short
	// limit ends clients which merely stopped reading for a while (measured on
	// 6.18); the default is a compromise between those and the vanished ones.
	UserTimeout time.Duration
}

// Config is all that a Server is told. Its zero values are good defaults.
type Config struct {
	Exports []*Export

	TLSMode TLSMode
	TLS     *tls.Config // needed unless TLSMode is NoTLS

	// AllowList permits NBD_OPT_LIST.
	AllowList bool
	// MaxConnections bounds all connections, those in the handshake included;
	// 0 means no limit. One too many is closed at once.
	MaxConnections int
	// MaxPerClient bounds those that come from one IP address, or, by vsock, from one
	// machine; 0 means no limit. Clients on unix sockets have no address, and are
	// not counted.
	MaxPerClient int
	// HandshakeTimeout bounds the time from accept to transmission. 0 means
	// 30 s, below 0 no limit.
	HandshakeTimeout time.Duration
	// KeepAlive is for TCP connections.
	KeepAlive KeepAlive
	// Transmission bounds what one connection may ask for. If it has no Memory
	// it gets one of 1 GiB, which all connections share, also after a reload.
	Transmission transmission.Config

	Logger *slog.Logger // nil discards

	// handshake is what connections under this configuration negotiate with.
	handshake *handshake.Server
}
