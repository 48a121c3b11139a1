package client

import (
	"context"
	"crypto/tls"
	"fmt"
	"math"
	"math/bits"
	"net"
	"time"

	"nbd.example/nbd/handshake"
	"nbd.example/nbd/internal/vsocket"
	"nbd.example/nbd/proto"
	"nbd.example/nbd/transmission"
	"nbd.example/nbd/uri"
)

// Config says how to connect. The zero value, and nil, are a good default.
type Config struct {
	// Export is the export's name, for New. Dial takes the URI's.
	Export string

	// TLS demands TLS, also where the URI does not. If its ServerName is empty,
	// Dial sets it to what the URI says. It is not changed.
	TLS *tls.Config
	// TLSOptional goes on in clear where the server refuses TLS and the URI does
	// not demand it. It protects from nobody who can change what is sent.
	TLSOptional bool

	// NoExtended and NoStructured do not ask for extended headers and structured
	// replies; with both set, replies are simple.
	NoExtended, NoStructured bool
	// Contexts are the metadata contexts to choose. Nil means base:allocation;
	// an empty list that is not nil means none.
	Contexts []string

	// Oldstyle accepts servers of before 2011, which speak oldstyle negotiation:
	// they have one export without a name, and no TLS.
	Oldstyle bool

	// MaxInFlight bounds the requests that wait for their replies; more wait for
	// their turn. 0 means 128.
	MaxInFlight int
	// CloseTimeout bounds how long Close waits for the server. 0 means 10 s.
	CloseTimeout time.Duration

	// DialContext connects. Nil means that of a net.Dialer, or the system's for
	// vsock. For vsock the address is CID:PORT.
	DialContext func(ctx context.Context, network, address string) (net.Conn, error)
	// Trace is called with each message of the handshake. Nil if nobody wants to know.
	Trace func(handshake.Event)
}

// Conn is a connection to an export, in the transmission phase. All methods may
// be called concurrently, but for Close.
type Conn struct {
	demux   *transmission.Demux
	export  handshake.ExportInfo
	agreed  handshake.Agreement
	timeout time.Duration

	size       int64  // reachable bytes
	min        int64  // what all offsets and lengths are multiples of
	maxPayload int64  // of one READ or WRITE, a multiple of min
	maxEffect  int64  // of any other request, a multiple of min
	allocation uint32 // the id of base:allocation
	extents    bool   // it was chosen
	filter     []uint32
}

// Dial connects to the server that an NBD URI names, and negotiates. ctx bounds
// only that. Connections by vsock need Linux.
func Dial(ctx context.Context, nbdURI string, cfg *Config) (*Conn, error) {
	a, c, err := dial(ctx, nbdURI, cfg)
	if err != nil {
		return nil, err
	}
	return newConn(a, c)
}

// New negotiates over conn, which it takes over: it is closed if New fails, and
// else by Close. ctx bounds only the negotiation.
func New(ctx context.Context, conn net.Conn, cfg *Config) (*Conn, error) {
	if cfg == nil {
		cfg = &Config{}
	}
	a, err := negotiate(ctx, conn, cfg)
	if err != nil {
		return nil, err
	}
	return newConn(a, cfg)
}

// dial connects and negotiates, and returns the Config as the URI completes it.
func dial(ctx context.Context, nbdURI string, cfg *Config) (*handshake.Agreement, *Config, error) {
	u, err := uri.Parse(nbdURI)
	if err != nil {
		return nil, nil, fmt.Errorf("dial: %w", err)
	}
	c := Config{}
	if cfg != nil {
		c = *cfg
	}
	c.Export = u.Export
	if err := c.tlsFor(u); err != nil {
		return nil, nil, fmt.Errorf("dial %v: %w", u, err)
	}
	network, address := u.Dial()
	connect := c.DialContext
	switch {
	case connect != nil:
	case u.Transport == uri.VSock:
		connect = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return vsocket.Dial(ctx, vsocket.Addr{Context: u.CID, Port: u.Port})
		}
	default:
		connect = new(net.Dialer).DialContext
	}
	conn, err := connect(ctx, network, address)
	if err != nil {
		return nil, nil, fmt.Errorf("dial %v: %w", u, err)
	}
	a, err := negotiate(ctx, conn, &c)
	if err != nil {
		return nil, nil, fmt.Errorf("dial %v: %w", u, err)
	}
	return a, &c, nil
}

func negotiate(ctx context.Context, conn net.Conn, cfg *Config) (*handshake.Agreement, error) {
	setup := handshake.Setup{Trace: cfg.Trace, Oldstyle: cfg.Oldstyle}
	h, err := setup.Client(ctx, conn)
	if err != nil {
		conn.Close()
		return nil, err
	}
	contexts := cfg.Contexts
	if contexts == nil {
		contexts = []string{proto.ContextBaseAllocation}
	}
	return h.Negotiate(ctx, handshake.ClientConfig{
		Export: cfg.Export, TLS: cfg.TLS, TLSOptional: cfg.TLSOptional,
		NoExtended: cfg.NoExtended, NoStructured: cfg.NoStructured, Contexts: contexts,
	})
}

// newConn begins the transmission phase.
func newConn(a *handshake.Agreement, cfg *Config) (*Conn, error) {
	c := &Conn{export: a.Export, agreed: *a, timeout: cfg.CloseTimeout}
	if c.timeout <= 0 {
		c.timeout = 10 * time.Second
	}
	if err := c.measure(); err != nil {
		a.Conn.Close()
		return nil, err
	}
	for _, m := range a.Contexts {
		if m.Name == proto.ContextBaseAllocation {
			c.allocation, c.extents = m.ID, true
		}
	}
	if c.offers(proto.FlagBlockStatusPayload) && a.Extended && c.extents && len(a.Contexts) > 1 {
		c.filter = []uint32{c.allocation}
	}
	c.demux = transmission.NewDemux(a.Conn, &transmission.DemuxConfig{
		Structured: a.Structured, Extended: a.Extended, Contexts: a.Contexts,
		MaxInFlight: cfg.MaxInFlight, Early: a.Early,
	})
	return c, nil
}

// measure settles the sizes that requests keep to. proto.md, "Size constraints".
func (c *Conn) measure() error {
	if c.export.Size > math.MaxInt64 {
		return fmt.Errorf("peer sent an export size of %d bytes, over the limit of 2^63-1", c.export.Size)
	}
	c.size = int64(c.export.Size)
	c.min = int64(c.export.BlockSize.Minimum)
	if !c.export.BlockSizeTold && c.size > 0 {
		// 512 bytes serve with any server, but an export with a broken sector at
		// its end shows that this one takes less.
		c.min = min(512, int64(1)<<bits.TrailingZeros64(c.export.Size))
	}
	// What is left behind the last whole block nobody can reach.
	c.size -= c.size % c.min
	c.maxPayload = min(int64(c.export.BlockSize.MaxPayload), math.MaxInt32)
	if c.maxPayload -= c.maxPayload % c.min; c.maxPayload <= 0 {
		return fmt.Errorf("peer sent a maximum payload of %d bytes below its minimum block size of %d", c.export.BlockSize.MaxPayload, c.min)
	}
	c.maxEffect = 1<<32 - proto.MaxMinBlock
	if c.agreed.Extended {
		c.maxEffect = 1 << 62
	}
	return nil
}

// offers reports whether the server offers all of f.
func (c *Conn) offers(f proto.TransmissionFlags) bool { return c.export.Flags&f == f }

// Export returns what the server told of the export. If it told no block sizes,
// BlockSize holds what serves with any server.
func (c *Conn) Export() handshake.ExportInfo { return c.export }

// Contexts returns the metadata contexts that were chosen.
func (c *Conn) Contexts() []proto.MetaContext { return c.agreed.Contexts }

// Structured reports whether structured replies were agreed on.
func (c *Conn) Structured() bool { return c.agreed.Structured }

// Extended reports whether extended headers were agreed on.
func (c *Conn) Extended() bool { return c.agreed.Extended }

// TLS returns the state of TLS, or nil if the connection is in clear.
func (c *Conn) TLS() *tls.ConnectionState { return c.agreed.TLS }

// Size returns the size in bytes.
func (c *Conn) Size() int64 { return c.size }

// Demux gives access to the requests themselves, of any form that the wire can
// carry, side by side with Conn's own.
func (c *Conn) Demux() *transmission.Demux { return c.demux }

// Close waits for the requests under way, takes leave of the server
// (NBD_CMD_DISC), and waits for it to close the connection, all within
// Config.CloseTimeout. It does not flush.
func (c *Conn) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), c.timeout)
	defer cancel()
	if err := c.demux.Disconnect(ctx); err != nil {
		return fmt.Errorf("close: %w", err)
	}
	return nil
}
