package handshake

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"os"

	"nbd.example/nbd/proto"
)

// session is the server's side of one negotiation.
type session struct {
	srv    *Server
	ctx    context.Context
	wire   wire
	peer   Peer
	option *option // being answered

	fixed    bool // the client knows fixed newstyle
	noZeroes bool
	listed   int // the longest list of exports that was sent

	// What was agreed on. STARTTLS forgets it.
	agreed struct {
		structured, extended bool
		contexts             []proto.MetaContext
		contextsOf           string // the export that they were chosen for
	}

	export     *Export // opened, and not yet handed over
	exportName string  // as the client named it

	result *Result // set by the option that ends the haggling

	scratch []byte
	opt     option
}

// option is one option as it was read.
type option struct {
	proto.OptionHeader
	data   []byte // good until the next read
	tooBig bool   // the data was thrown away, being longer than maxData
}

// run greets and answers options until one of them ends the haggling.
func (s *session) run() error {
	if err := s.greet(); err != nil {
		return err
	}
	for n := 1; ; n++ {
		if n > s.srv.maxOptions()+8*s.listed {
			return violation("more than %d options", n-1)
		}
		if err := s.readOption(); err != nil {
			return err
		}
		if err := s.answer(); err != nil {
			return err
		}
		if err := s.wire.flush(); err != nil {
			return fmt.Errorf("answering %v: %w", s.option.Option, err)
		}
		if s.result != nil {
			s.result.Options = n
			s.export = nil // handed over
			return nil
		}
	}
}

// greet exchanges the flags. proto.md, "Newstyle negotiation", "Client flags".
func (s *session) greet() error {
	offer := s.srv.offered()
	s.wire.out = proto.AppendGreeting(s.wire.out, offer)
	if s.srv.Trace != nil {
		s.trace(true, GreetingMessage{offer}, s.wire.out)
	}
	if err := s.wire.flush(); err != nil {
		return s.gone("the greeting", err)
	}
	b, err := s.wire.peek(proto.ClientFlagsSize)
	if err != nil {
		return s.gone("the client's flags", err)
	}
	flags := proto.ParseClientFlags(b)
	if s.srv.Trace != nil {
		s.trace(false, FlagsMessage{flags}, b)
	}
	s.wire.skip(proto.ClientFlagsSize)
	// Each client flag has the number of the handshake flag that offers it.
	if bad := flags &^ proto.ClientFlags(offer); bad != 0 {
		return violation("client flags that were not offered: %v", bad)
	}
	s.fixed = flags&proto.ClientFixedNewstyle != 0
	s.noZeroes = flags&proto.ClientNoZeroes != 0
	return nil
}

// readOption reads the next option into s.option.
func (s *session) readOption() error {
	b, err := s.wire.peek(proto.OptionHeaderSize)
	if err != nil {
		return s.gone("an option", err)
	}
	o := &s.opt
	*o = option{}
	s.option = o
	if o.OptionHeader, err = proto.ParseOptionHeader(b); err != nil {
		return malformed("an option", err)
	}
	size := proto.OptionHeaderSize
	if o.Length <= maxData {
		size += int(o.Length)
		if b, err = s.wire.peek(size); err != nil {
			return fmt.Errorf("reading the data of %v: %w", o.Option, err)
		}
		o.data = b[proto.OptionHeaderSize:]
	}
	if s.srv.Trace != nil {
		s.trace(false, optionMessage(o.OptionHeader, o.data), b)
	}
	s.wire.skip(size)
	if o.Length > maxData {
		o.tooBig = true
		if err := s.wire.discard(int64(o.Length)); err != nil {
			return fmt.Errorf("reading the data of %v: %w", o.Option, err)
		}
	}
	return nil
}

// gone tells a client that left between two messages from other trouble.
func (s *session) gone(what string, err error) error {
	if s.wire.buffered() == 0 && hungUp(err) {
		return fmt.Errorf("waiting for %s: %w", what, ErrHungUp)
	}
	return fmt.Errorf("waiting for %s: %w", what, err)
}

// answer lets the option's own code answer it, unless a rule that holds for all
// options comes first. It returns an error if the connection must end.
func (s *session) answer() error {
	o := s.option
	if o.Option == proto.OptSetMetaContext {
		s.forgetContexts() // also if it fails, however it does
	}
	switch {
	case !s.fixed && o.Option != proto.OptExportName:
		return violation("%v without having agreed on fixed newstyle", o.Option)
	case o.Option == proto.OptAbort:
		return s.abort()
	case o.Option == proto.OptExportName:
		return s.exportNameOption()
	case s.srv.shuttingDown():
		return s.refuse(proto.RepErrShutdown, "%v", ErrShutdown)
	case s.srv.Mode == Forced && s.peer.TLS == nil && o.Option != proto.OptStartTLS:
		return s.refuse(proto.RepErrTLSReqd, "this server speaks with nobody without TLS")
	}
	switch o.Option {
	case proto.OptList:
		return s.list()
	case proto.OptStartTLS:
		return s.startTLS()
	case proto.OptInfo:
		return s.info()
	case proto.OptGo:
		return s.goOption()
	case proto.OptStructuredReply:
		return s.structuredReply()
	case proto.OptListMetaContext:
		return s.listMetaContext()
	case proto.OptSetMetaContext:
		return s.setMetaContext()
	case proto.OptExtendedHeaders:
		return s.extendedHeaders()
	}
	return s.refuse(proto.RepErrUnsup, "option %v is not known here", o.Option)
}

// reply appends a reply to the option that is being answered.
func (s *session) reply(r proto.OptionReply, data []byte) error {
	from := len(s.wire.out)
	s.wire.out = proto.AppendOptionReply(s.wire.out, s.option.Option, r, data)
	if s.srv.Trace != nil {
		s.trace(true, replyMessage(s.option.Option, r, data), s.wire.out[from:])
	}
	if len(s.wire.out) >= flushAt {
		return s.wire.flush()
	}
	return nil
}

func (s *session) ack() error { return s.reply(proto.RepAck, nil) }

// refuse answers with an error and a message for the client's user.
func (s *session) refuse(r proto.OptionReply, format string, args ...any) error {
	return s.reply(r, []byte(clean(fmt.Sprintf(format, args...))))
}

// refuseData refuses data behind an option that has none.
func (s *session) refuseData() error {
	return s.refuse(proto.RepErrInvalid, "%v has no data, but %d bytes came with it", s.option.Option, s.option.Length)
}

// refuseBig refuses data that are too long to be looked at.
func (s *session) refuseBig() error {
	return s.refuse(proto.RepErrTooBig, "%d bytes of data, over the limit of %d", s.option.Length, maxData)
}

// refuseError answers with what an error of the caller's functions stands for.
func (s *session) refuseError(err error) error {
	r := proto.RepErrUnknown
	switch {
	case errors.Is(err, ErrPolicy):
		r = proto.RepErrPolicy
	case errors.Is(err, ErrShutdown):
		r = proto.RepErrShutdown
	case errors.Is(err, ErrTLSRequired) && s.mayDemandTLS():
		r = proto.RepErrTLSReqd
	case errors.Is(err, ErrTLSRequired):
		r = proto.RepErrPolicy
	}
	return s.refuse(r, "%v", err)
}

// mayDemandTLS says whether the option may be answered with TLS_REQD because of
// its export. proto.md, "NOTLS mode", "SELECTIVETLS mode".
func (s *session) mayDemandTLS() bool {
	return s.srv.Mode == Selective && s.peer.TLS == nil &&
		(s.option.Option == proto.OptInfo || s.option.Option == proto.OptGo)
}

// open returns the export of that name, the one at hand if it is the same.
func (s *session) open(name string) (*Export, error) {
	if s.export != nil && s.exportName == name {
		return s.export, nil
	}
	s.closeExport()
	e, err := s.srv.Open(s.ctx, s.peer, name)
	if err != nil {
		return nil, err
	}
	if e == nil {
		return nil, ErrUnknown
	}
	s.export, s.exportName = e, name
	if err := e.check(); err != nil {
		s.closeExport()
		return nil, err
	}
	return e, nil
}

func (s *session) closeExport() {
	if s.export == nil {
		return
	}
	e := s.export
	s.export = nil
	if s.srv.Close != nil {
		s.srv.Close(e)
	}
}

// flags are what the client is told about e now: SEND_DF needs chunks, and
// BLOCK_STATUS_PAYLOAD extended headers and contexts to filter.
// proto.md, "Transmission flags".
func (s *session) flags(e *Export) proto.TransmissionFlags {
	f := e.Flags | proto.FlagHasFlags
	f &^= proto.FlagSendDF | proto.FlagBlockStatusPayload
	if f&proto.FlagSendWriteZeroes == 0 {
		f &^= proto.FlagSendFastZero
	}
	if s.agreed.structured || s.agreed.extended {
		f |= proto.FlagSendDF
	}
	if s.agreed.extended && len(s.contexts()) > 0 {
		f |= proto.FlagBlockStatusPayload
	}
	return f
}

// contexts are those that were chosen for the open export: what was chosen for
// another name does not count. proto.md, "Metadata querying".
func (s *session) contexts() []proto.MetaContext {
	if s.agreed.contextsOf != s.exportName {
		return nil
	}
	return s.agreed.contexts
}

func (s *session) forgetContexts() { s.agreed.contexts, s.agreed.contextsOf = nil, "" }

// finish ends the haggling with the open export.
func (s *session) finish(blockSizeAsked bool) {
	s.result = &Result{
		Conn:           s.wire.conn,
		Peer:           s.peer,
		Export:         s.export,
		Name:           s.exportName,
		Flags:          s.flags(s.export),
		Structured:     s.agreed.structured,
		Extended:       s.agreed.extended,
		Contexts:       s.contexts(),
		BlockSizeAsked: blockSizeAsked,
		Early:          s.wire.early(),
	}
}

// bye ends TLS before the connection is dropped. proto.md, "Termination of the
// session during option haggling".
func (s *session) bye(err error) {
	if c, ok := s.wire.conn.(*tls.Conn); ok && s.ctx.Err() == nil && !errors.Is(err, os.ErrDeadlineExceeded) {
		c.CloseWrite() // bounded in time by itself; fails if the handshake has
	}
}

func (s *session) trace(fromServer bool, m Message, raw []byte) {
	s.srv.Trace(s.peer, Event{fromServer, m, raw})
}
