package handshake

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"

	"nbd.example/nbd/proto"
)

// maxAnswer bounds all replies to one option, in bytes: some hundred thousand
// exports of ordinary names.
const maxAnswer = 16 << 20

// Setup is how a client presents itself. The zero value is a good default.
type Setup struct {
	// Refuse holds handshake flags of the server to be ignored: without
	// FIXED_NEWSTYLE only [Client.ExportName] is left, without NO_ZEROES its
	// answer is padded.
	Refuse proto.HandshakeFlags
	// Oldstyle accepts a server that speaks oldstyle negotiation, see
	// [Client.Oldstyle]. Without it such a server is an error: it has no TLS, no
	// names of exports, and no way to say what is wrong.
	Oldstyle bool
	// Trace is called with each message, in order. Nil if nobody wants to know.
	Trace func(Event)
}

// Client is the client's side of a negotiation, driven step by step. It is for
// one goroutine at a time. Each step sends one option and waits for the end of
// its answer, because a client must not send the next one earlier.
//
// A step returns a [*ReplyError] if the server refused it, or an error that
// wraps [ErrState] if it was not sent, because the protocol does not allow it
// now; then another step may follow. Any other error has broken the connection,
// and all that is left is Close. After NBD_REP_ERR_SHUTDOWN only Abort is left.
//
// A step's context bounds it; the connection's own deadlines are replaced, and
// there are none between steps.
type Client struct {
	wire  wire
	raw   net.Conn // below TLS
	trace func(Event)

	offered proto.HandshakeFlags
	flags   proto.ClientFlags
	tls     *tls.ConnectionState
	heard   bool // the server has answered over TLS

	structured, extended bool
	contexts             []proto.MetaContext
	contextsOf           string

	oldstyle *proto.OldstyleGreeting // nil if the server greeted in newstyle

	state    clientState
	err      error // what broke the connection
	shutdown error // the server is shutting down
}

type clientState int

const (
	haggling clientState = iota
	agreed               // the connection belongs to an Agreement
	over                 // closed
)

// Agreement is what a negotiation has settled, as the client sees it.
type Agreement struct {
	Conn net.Conn             // a [*tls.Conn] after StartTLS
	TLS  *tls.ConnectionState // nil in clear
	Name string               // as it was asked for
	// Export is what the server told. If it told no block sizes, BlockSize holds
	// what serves with any server: a minimum of 512 bytes and a maximum payload
	// of 32 MiB. proto.md, "Size constraints".
	Export               ExportInfo
	Structured, Extended bool // Extended takes precedence
	Contexts             []proto.MetaContext
	// Early holds bytes that the server sent behind its last reply. They come
	// before what Conn reads.
	Early []byte
}

// NewClient reads the server's greeting and answers it. It does not close conn
// if it fails; once it has succeeded, Abort and Close do.
func NewClient(ctx context.Context, conn net.Conn) (*Client, error) {
	return new(Setup).Client(ctx, conn)
}

// Client is like [NewClient].
func (s *Setup) Client(ctx context.Context, conn net.Conn) (*Client, error) {
	c := &Client{raw: conn, trace: s.Trace}
	c.wire.init(conn)
	if err := c.guarded(ctx, func() error { return c.greet(s) }); err != nil {
		c.wire.release()
		return nil, err
	}
	return c, nil
}

// greet exchanges the flags. Unknown handshake flags are ignored.
// proto.md, "Newstyle negotiation".
func (c *Client) greet(s *Setup) error {
	b, err := c.wire.peek(proto.GreetingSize)
	if err != nil {
		if c.wire.buffered() == 0 && hungUp(err) {
			err = ErrHungUp
		}
		return c.broken(fmt.Errorf("waiting for the greeting: %w", err))
	}
	c.offered, err = proto.ParseGreeting(b)
	switch {
	case s.Oldstyle && errors.Is(err, proto.ErrOldstyle):
		return c.greetOldstyle()
	case err != nil:
		return c.broken(malformed("its greeting", err))
	}
	if c.trace != nil {
		c.trace(Event{true, GreetingMessage{c.offered}, b})
	}
	c.wire.skip(proto.GreetingSize)
	// Each client flag has the number of the handshake flag that offers it.
	known := proto.FlagFixedNewstyle | proto.FlagNoZeroes
	c.flags = proto.ClientFlags(c.offered & known &^ s.Refuse)
	c.wire.out = proto.AppendClientFlags(c.wire.out, c.flags)
	if c.trace != nil {
		c.trace(Event{false, FlagsMessage{c.flags}, c.wire.out})
	}
	if err := c.wire.flush(); err != nil {
		return c.broken(fmt.Errorf("sending the client's flags: %w", err))
	}
	return nil
}

// Fixed says whether fixed newstyle was agreed on. If not, [Client.ExportName]
// is the only step.
func (c *Client) Fixed() bool { return c.flags&proto.ClientFixedNewstyle != 0 }

// Offered returns the server's handshake flags, also unknown ones.
func (c *Client) Offered() proto.HandshakeFlags { return c.offered }

// TLS returns the state of TLS, or nil in clear.
func (c *Client) TLS() *tls.ConnectionState { return c.tls }

// Option sends any option, also an unknown one, and calls each with each reply
// before the last; their data are good during the call. It is for experiments:
// what the option may have changed is not noted. Options that end the haggling
// or begin TLS have methods of their own and cannot be sent so.
func (c *Client) Option(ctx context.Context, o proto.Option, data []byte, each func(r proto.OptionReply, data []byte) error) error {
	switch o {
	case proto.OptExportName, proto.OptGo, proto.OptStartTLS, proto.OptAbort:
		return c.misuse(o, "it has a method of its own")
	}
	if each == nil {
		each = func(proto.OptionReply, []byte) error { return nil }
	}
	return c.step(ctx, o, data, each)
}

// Close drops the connection, without a word but TLS's own. After a successful
// Go or ExportName it does nothing: the connection is the Agreement's.
func (c *Client) Close() error {
	if c.state == agreed {
		return nil
	}
	c.state = over
	c.wire.release()
	if c.err != nil {
		return c.raw.Close() // whoever is stuck or breaks the rules is not waited for
	}
	return c.wire.conn.Close()
}

// step sends an option and waits for the end of the answer; each gets the
// replies before the last. Nil allows none.
func (c *Client) step(ctx context.Context, o proto.Option, data []byte, each func(proto.OptionReply, []byte) error) error {
	if err := c.allowed(o); err != nil {
		return err
	}
	return c.guarded(ctx, func() error { return c.call(o, data, each) })
}

// allowed says whether the protocol allows o now.
func (c *Client) allowed(o proto.Option) error {
	switch {
	case c.err != nil:
		return c.err
	case c.state != haggling:
		return c.misuse(o, "the option haggling is over")
	case c.shutdown != nil:
		return c.shutdown
	case c.oldstyle != nil:
		return c.misuse(o, "an oldstyle server knows no options")
	case !c.Fixed() && o != proto.OptExportName:
		return c.misuse(o, "the server knows no option but NBD_OPT_EXPORT_NAME")
	}
	return nil
}

func (c *Client) call(o proto.Option, data []byte, each func(proto.OptionReply, []byte) error) error {
	if err := c.send(o, data); err != nil {
		return c.broken(err)
	}
	for total := 0; ; {
		r, data, err := c.readReply(o)
		if err != nil {
			return c.broken(err)
		}
		switch total += proto.OptionReplyHeaderSize + len(data); {
		case r == proto.RepAck:
			return nil
		case r.IsError():
			return c.refused(&ReplyError{o, r, string(data[:min(len(data), proto.MaxString)])})
		case total > maxAnswer:
			return c.broken(violation("more than %d bytes in answer to %v", maxAnswer, o))
		case each == nil:
			return c.broken(malformed(fmt.Sprintf("%v to %v", r, o), errMisplaced))
		}
		if err := each(r, data); err != nil {
			return c.broken(malformed(fmt.Sprintf("%v to %v", r, o), err))
		}
	}
}

func (c *Client) send(o proto.Option, data []byte) error {
	c.wire.out = proto.AppendOption(c.wire.out, o, data)
	if c.trace != nil {
		m := optionMessage(proto.OptionHeader{Option: o, Length: uint32(len(data))}, data)
		c.trace(Event{false, m, c.wire.out})
	}
	if err := c.wire.flush(); err != nil {
		return fmt.Errorf("sending %v: %w", o, err)
	}
	return nil
}

// readReply reads one reply to o. Its data are good until the next.
func (c *Client) readReply(o proto.Option) (proto.OptionReply, []byte, error) {
	b, err := c.wire.peek(proto.OptionReplyHeaderSize)
	if err != nil {
		if c.wire.buffered() == 0 && hungUp(err) {
			err = ErrHungUp
			if c.tls != nil && !c.heard {
				err = fmt.Errorf("%w, perhaps because it wants another client certificate", err)
			}
		}
		return 0, nil, fmt.Errorf("waiting for the answer to %v: %w", o, err)
	}
	h, err := proto.ParseOptionReplyHeader(b)
	switch {
	case err != nil:
		return 0, nil, malformed("a reply", err)
	case h.Option != o:
		return 0, nil, violation("a reply to %v instead of %v", h.Option, o)
	case h.Length > maxData:
		return 0, nil, violation("%v to %v with %d bytes, over the limit of %d", h.Reply, o, h.Length, maxData)
	}
	n := proto.OptionReplyHeaderSize + int(h.Length)
	if b, err = c.wire.peek(n); err != nil {
		return 0, nil, fmt.Errorf("reading the data of %v to %v: %w", h.Reply, o, err)
	}
	data := b[proto.OptionReplyHeaderSize:]
	if c.trace != nil {
		c.trace(Event{true, replyMessage(o, h.Reply, data), b})
	}
	c.wire.skip(n)
	c.heard = c.tls != nil
	return h.Reply, data, nil
}

// refused notes a shutdown: whoever is told of it must leave.
// proto.md, "Termination of the session during option haggling".
func (c *Client) refused(e *ReplyError) error {
	if e.Reply == proto.RepErrShutdown {
		c.shutdown = e
	}
	return e
}

// guarded runs f under ctx.
func (c *Client) guarded(ctx context.Context, f func() error) error {
	var g guard
	if err := g.begin(ctx, c.raw); err != nil {
		return c.broken(err)
	}
	defer g.end()
	return explain(ctx, f())
}

// agree ends the haggling.
func (c *Client) agree(name string, info *ExportInfo) *Agreement {
	if !info.BlockSizeTold {
		info.BlockSize = proto.BlockSize{Minimum: 512, Preferred: 4096, MaxPayload: proto.DefaultMaxPayload}
	}
	a := &Agreement{
		Conn: c.wire.conn, TLS: c.tls, Name: name, Export: *info,
		Structured: c.structured, Extended: c.extended, Early: c.wire.early(),
	}
	if c.contextsOf == name {
		a.Contexts = c.contexts
	}
	c.state = agreed
	c.wire.release()
	return a
}

func (c *Client) forgetContexts() { c.contexts, c.contextsOf = nil, "" }

// broken notes the error that ends the connection.
func (c *Client) broken(err error) error {
	c.err = fmt.Errorf("handshake: %w", err)
	return c.err
}

func (c *Client) misuse(o proto.Option, why string) error {
	return fmt.Errorf("handshake: %v: %w: %s", o, ErrState, why)
}

func isReply(err error) bool {
	var e *ReplyError
	return errors.As(err, &e)
}

var errMisplaced = errors.New("that reply does not belong there")
