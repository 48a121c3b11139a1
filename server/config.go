package server

import (
	"context"
	"crypto/tls"
	"log/slog"
	"net"
	"net/netip"
	"time"

	"nbd.example/nbd/block"
	"nbd.example/nbd/proto"
	"nbd.example/nbd/transmission"
)

// Client is who asks for an export.
type Client struct {
	Addr net.Addr
	// TLS is nil on a plain connection.
	TLS *tls.ConnectionState
}

// Export describes what is served under one name. It is a description, not a
// device: Open makes the device.
type Export struct {
	Name        string // "" is the default export
	Description string

	// Open opens the device of the export. If Private is false it is called once,
	// when the export is added to the server, and all its connections share the
	// device. If Private is true it is called for each connection that asks for
	// the export, with its Client, and the device is closed with the connection.
	Open    func(ctx context.Context, c Client) (*block.Device, error)
	Private bool

	// Settings identifies the effective settings. An export that is configured
	// again with equal Settings keeps its device.
	Settings string

	ReadOnly   bool                    // offer it read-only whatever the device can
	Rotational bool                    // set NBD_FLAG_ROTATIONAL whatever the device says
	Hide       proto.TransmissionFlags // never offered, though the device could
	MinBlock   uint32                  // advertised minimum block size in bytes; 0 means 1

	MaxConnections int      // 0 means no limit
	RequireTLS     bool     // SELECTIVETLS: this export only over TLS
	Allow          *Rules   // nil lets everybody in
	NotListed      bool     // leave it out of NBD_OPT_LIST
	Aliases        []string // further names, not listed: "" makes it the default export
}

// Rules say which addresses may connect.
type Rules struct {
	Prefixes []netip.Prefix // an empty list lets nobody in
}

// TLSMode is how the server treats TLS. proto.md, "Server-side requirements".
type TLSMode int

// TLS modes.
const (
	NoTLS     TLSMode = iota // NOTLS
	Selective                // SELECTIVETLS: offered; demanded for exports with RequireTLS
	Forced                   // FORCEDTLS
)

// Config is all that a Server is told. Its zero values are good defaults.
type Config struct {
	Exports []*Export

	TLSMode TLSMode
	TLS     *tls.Config // needed unless TLSMode is NoTLS

	// AllowList permits NBD_OPT_LIST.
	AllowList bool
	// MaxConnections bounds all connections; 0 means no limit.
	MaxConnections int
	// HandshakeTimeout bounds the time from accept to transmission. 0 means 30 s.
	HandshakeTimeout time.Duration
	// Transmission bounds what one connection may ask for.
	Transmission transmission.Config

	Logger *slog.Logger // nil discards
}
