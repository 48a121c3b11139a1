package handshake

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync"

	"nbd.example/nbd/proto"
)

// TLSMode is how a server treats TLS. proto.md, "Server-side requirements".
type TLSMode int

// TLS modes.
const (
	NoTLS     TLSMode = iota // NOTLS: STARTTLS is refused
	Selective                // SELECTIVETLS: offered; Open says with ErrTLSRequired which exports demand it
	Forced                   // FORCEDTLS: nothing but STARTTLS and ABORT before it
)

// String returns the specification's name.
func (m TLSMode) String() string {
	switch m {
	case NoTLS:
		return "NOTLS"
	case Selective:
		return "SELECTIVETLS"
	case Forced:
		return "FORCEDTLS"
	}
	return fmt.Sprintf("TLSMode(%d)", int(m))
}

// Peer is who is at the other end of a server's connection.
type Peer struct {
	Addr net.Addr
	TLS  *tls.ConnectionState // nil in clear
}

// Export is what a client is told about an export. [Server.Open] makes it; it is
// not changed here, and must not change until the session is over.
type Export struct {
	// Name is the canonical name, as LIST shows it. It may differ from the name
	// that the client used.
	Name        string
	Description string
	Size        uint64 // bytes
	// Flags are what the export offers. HAS_FLAGS, SEND_DF and
	// BLOCK_STATUS_PAYLOAD are added where the negotiation allows them.
	Flags proto.TransmissionFlags
	// BlockSize is told to a client that asks. The zero value stands for
	// [proto.DefaultBlockSize].
	BlockSize proto.BlockSize
	// RequireBlockSize refuses clients that do not ask for BlockSize. It is for
	// exports that serve no unaligned request.
	RequireBlockSize bool
	// Contexts are the full names of the metadata contexts that it has.
	Contexts []string
	// Handle is the caller's own.
	Handle any
}

// Server negotiates with clients. One Server serves any number of connections
// at the same time; it must not be changed or copied once it is in use. Its
// functions are called from the goroutines that call Negotiate, one at a time
// for each connection.
type Server struct {
	Mode TLSMode
	// TLS is needed unless Mode is NoTLS. TLS 1.2 is the oldest version that is
	// spoken unless MinVersion says otherwise. A copy of it is used, with
	// DynamicRecordSizingDisabled set; what GetConfigForClient returns is used as it is.
	TLS *tls.Config

	// List returns what LIST shows to p; entries that are not strings of the
	// protocol are left out. Nil refuses LIST with NBD_REP_ERR_POLICY.
	List func(ctx context.Context, p Peer) ([]proto.ServerReply, error)
	// Open opens an export for p. It is called at the first option that names the
	// export (INFO, GO, EXPORT_NAME, LIST_META_CONTEXT, SET_META_CONTEXT), and
	// again only if another was named in between or TLS has begun. The empty name
	// is the default export. [ErrUnknown], [ErrPolicy], [ErrTLSRequired] and
	// [ErrShutdown] choose the reply, any other error is NBD_REP_ERR_UNKNOWN; the
	// error's text goes to the client.
	Open func(ctx context.Context, p Peer, name string) (*Export, error)
	// Close is called for each opened export that is not handed over in a
	// [Result]. Nil if there is nothing to close.
	Close func(*Export)

	// Shutdown, once closed, makes every option but ABORT fail with
	// NBD_REP_ERR_SHUTDOWN. Nil if the server does not shut down this way.
	Shutdown <-chan struct{}
	// MaxOptions bounds the options of a session; listing exports raises it by 8
	// for each export. 0 means 256.
	MaxOptions int
	// Hide holds handshake flags that are not offered. Without FIXED_NEWSTYLE
	// EXPORT_NAME is the only option, and Mode must be NoTLS.
	Hide proto.HandshakeFlags
	// Trace is called with each message, in order. Nil if nobody wants to know.
	Trace func(Peer, Event)

	tlsOnce  sync.Once
	tlsReady *tls.Config
}

// Result is what a negotiation has settled.
type Result struct {
	Conn    net.Conn // a [*tls.Conn] after STARTTLS
	Peer    Peer
	Export  *Export // the caller's to close from now on
	Name    string  // as the client named the export
	Flags   proto.TransmissionFlags
	Options int // how many options the client sent

	Structured, Extended bool                // Extended takes precedence
	Contexts             []proto.MetaContext // chosen for this export
	// BlockSizeAsked says that the client will keep to the export's BlockSize.
	BlockSizeAsked bool
	// Early holds bytes that the client sent behind its last option. They come
	// before what Conn reads.
	Early []byte
}

// Negotiate leads one connection to the transmission phase. It does not close
// conn, whatever happens: if it fails, the caller must, without another byte.
// ctx bounds it all, also the TLS handshake; conn's own deadlines are replaced,
// and there are none when Negotiate returns a Result.
//
// The errors [ErrAborted] and [ErrHungUp] are the client's free choice;
// [ErrProtocol] is wrapped by those that are its fault.
func (s *Server) Negotiate(ctx context.Context, conn net.Conn) (*Result, error) {
	if err := s.check(); err != nil {
		return nil, fmt.Errorf("handshake: %w", err)
	}
	var g guard
	if err := g.begin(ctx, conn); err != nil {
		return nil, fmt.Errorf("handshake: %w", err)
	}
	n := &session{srv: s, ctx: ctx, peer: Peer{Addr: conn.RemoteAddr()}}
	n.wire.init(conn)
	defer func() { // also when one of the caller's functions panics
		g.end()
		n.closeExport()
		n.wire.release()
	}()
	if err := n.run(); err != nil {
		n.bye(err)
		return nil, fmt.Errorf("handshake: %w", explain(ctx, err))
	}
	return n.result, nil
}

func (s *Server) check() error {
	switch {
	case s.Open == nil:
		return errors.New("the server has no Open function")
	case s.Mode < NoTLS || s.Mode > Forced:
		return fmt.Errorf("unknown TLS mode %d", int(s.Mode))
	case s.Mode != NoTLS && s.TLS == nil:
		return fmt.Errorf("TLS mode %v without a TLS configuration", s.Mode)
	case s.Mode != NoTLS && s.Hide&proto.FlagFixedNewstyle != 0:
		return fmt.Errorf("TLS mode %v without fixed newstyle", s.Mode)
	}
	return nil
}

func (s *Server) offered() proto.HandshakeFlags {
	return (proto.FlagFixedNewstyle | proto.FlagNoZeroes) &^ s.Hide
}

func (s *Server) shuttingDown() bool {
	select {
	case <-s.Shutdown:
		return true
	default:
		return false
	}
}

func (s *Server) maxOptions() int {
	if s.MaxOptions > 0 {
		return s.MaxOptions
	}
	return 256
}

// blockSize is what the export's clients are told.
func (e *Export) blockSize() proto.BlockSize {
	if e.BlockSize == (proto.BlockSize{}) {
		return proto.DefaultBlockSize
	}
	return e.BlockSize
}

// check finds what a client must not be told.
func (e *Export) check() error {
	if err := proto.CheckString([]byte(e.Name)); err != nil {
		return fmt.Errorf("the export's name: %w", err)
	}
	if err := proto.CheckString([]byte(e.Description)); err != nil {
		return fmt.Errorf("the export's description: %w", err)
	}
	for _, c := range e.Contexts {
		if err := proto.CheckString([]byte(c)); err != nil {
			return fmt.Errorf("a metadata context of the export: %w", err)
		}
	}
	return e.blockSize().Check()
}
