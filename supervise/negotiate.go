package supervise

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime/debug"
	"strings"

	"nbd.example/nbd/handshake"
	"nbd.example/nbd/proto"
	"nbd.example/nbd/supervise/relay"
	"nbd.example/nbd/supervise/sock"
)

// peer is a connection in the transmission phase, ready for the kernel.
type peer struct {
	from   *target
	file   *os.File
	relay  *relay.Relay // behind file; nil for a socket of its own
	export handshake.ExportInfo
	who    string // the server's identity by TLS
}

// discard closes a connection that the kernel has not taken.
func (p *peer) discard() {
	sock.Leave(p.file)
	if p.relay != nil {
		p.relay.Close()
	}
}

// destroy closes a connection that the kernel may have taken, so that it dies there.
func (p *peer) destroy() {
	sock.End([]*os.File{p.file}, 0)
	p.file.Close()
	if p.relay != nil {
		p.relay.Close()
	}
}

// open connects to a server and greets it.
func (t *target) open(ctx context.Context, oldstyle bool) (*handshake.Client, net.Conn, error) {
	conn, err := t.dial(ctx)
	if err != nil {
		return nil, nil, err
	}
	setup := handshake.Setup{Oldstyle: oldstyle}
	h, err := setup.Client(ctx, conn)
	if err != nil {
		conn.Close()
		return nil, nil, err
	}
	return h, conn, nil
}

// connect makes one connection for the kernel, which knows simple replies only. With
// tell, an export that does not exist makes an error that lists those that do.
func (t *target) connect(ctx context.Context, exportName, tell bool) (p *peer, err error) {
	defer t.recovered(&err)
	if t.bare > 0 {
		conn, err := t.dial(ctx)
		if err != nil {
			return nil, err
		}
		return newPeer(t, &handshake.Agreement{Conn: conn, Export: handshake.ExportInfo{Size: uint64(t.bare)}})
	}
	// Servers of before 2011 speak before they are asked. They have no names and no TLS.
	h, conn, err := t.open(ctx, t.export == "" && t.tls == nil)
	if err != nil {
		return nil, err
	}
	a, err := t.choose(ctx, h, exportName, tell)
	if err != nil {
		h.Abort(ctx)
		return nil, err
	}
	if len(a.Early) > 0 && a.TLS == nil {
		conn.Close()
		return nil, fmt.Errorf("peer sent %d bytes before any request", len(a.Early))
	}
	return newPeer(t, a)
}

// recovered makes an error of a panic: whatever one server sends, the process keeps other
// devices. It must be deferred.
func (t *target) recovered(err *error) {
	if v := recover(); v != nil {
		t.log.Error("a fault of this program: panic while negotiating", "server", t.name, "panic", v, "stack", string(debug.Stack()))
		*err = fmt.Errorf("a fault of this program: panic while negotiating: %v", v)
	}
}

// choose chooses the export.
func (t *target) choose(ctx context.Context, h *handshake.Client, exportName, tell bool) (*handshake.Agreement, error) {
	if h.Oldstyle() {
		return h.TakeOldstyle()
	}
	if t.tls != nil {
		if err := h.StartTLS(ctx, t.tls.Get()); err != nil {
			return nil, err
		}
	}
	if exportName || !h.Fixed() {
		return h.ExportName(ctx, t.export)
	}
	a, err := h.Go(ctx, t.export, proto.InfoBlockSize, proto.InfoName)
	switch {
	case errors.Is(err, handshake.ErrUnsupported):
		return h.ExportName(ctx, t.export)
	case tell && errors.Is(err, handshake.ErrUnknown):
		return nil, fmt.Errorf("%w%s", err, listing(ctx, h))
	case t.tls == nil && errors.Is(err, handshake.ErrTLSRequired):
		return nil, fmt.Errorf("%w: use TLS, or a URI that begins with nbds", err)
	}
	return a, err
}

// listing says what a server exports, for an error.
func listing(ctx context.Context, h *handshake.Client) string {
	list, err := h.List(ctx)
	if err != nil {
		return "; the server does not list its exports"
	}
	const most = 20
	var names []string
	for _, e := range list[:min(len(list), most)] {
		names = append(names, fmt.Sprintf("%.64q", e.Export))
	}
	if len(list) > most {
		names = append(names, fmt.Sprintf("and %d more", len(list)-most))
	}
	if names == nil {
		return "; the server lists no exports"
	}
	return "; the server has " + strings.Join(names, ", ")
}

// newPeer makes a socket for the kernel of what was agreed on.
func newPeer(t *target, a *handshake.Agreement) (*peer, error) {
	p := &peer{from: t, export: a.Export, who: t.tls.Identity(a.TLS)}
	var err error
	if a.TLS == nil {
		if p.file, err = sock.ForKernel(a.Conn); err != nil {
			a.Conn.Close()
			return nil, err
		}
	}
	if p.file != nil {
		return p, nil
	}
	if p.relay, err = relay.New(a.Conn, a.Early); err != nil {
		return nil, err
	}
	p.file = p.relay.Kernel()
	return p, nil
}

// answer is what a server tells on a connection of its own, beside those of the kernel:
// there more can be asked.
type answer struct {
	export   handshake.ExportInfo
	told     bool   // by INFO
	instance string // "" if it names none
	who      string
}

// ask asks about the export. Naming the instance wants structured replies, which the
// kernel does not know and which cannot be taken back: proto.md, "Metadata querying",
// NBD_OPT_LIST_META_CONTEXT.
func (t *target) ask(ctx context.Context) (a *answer, err error) {
	defer t.recovered(&err)
	h, _, err := t.open(ctx, false)
	if err != nil {
		return nil, err
	}
	a, err = t.questions(ctx, h)
	h.Abort(ctx)
	return a, err
}

func (t *target) questions(ctx context.Context, h *handshake.Client) (*answer, error) {
	a := &answer{}
	if !h.Fixed() {
		return a, nil
	}
	if t.tls != nil {
		if err := h.StartTLS(ctx, t.tls.Get()); err != nil {
			return nil, err
		}
	}
	a.who = t.tls.Identity(h.TLS())
	// INFO comes first: structured replies add flags to what it tells.
	info, err := h.Info(ctx, t.export, proto.InfoBlockSize, proto.InfoName)
	switch {
	case err == nil:
		a.export, a.told = *info, true
	case !refusal(err):
		return nil, err
	case !errors.Is(err, handshake.ErrUnsupported):
		return nil, err // it does not know the export, or not us
	}
	if err := h.StructuredReply(ctx); err != nil {
		return a, unless(refusal(err), err)
	}
	names, err := h.ListMetaContext(ctx, t.export, proto.ContextInstance)
	for _, n := range names {
		if id, ok := strings.CutPrefix(n, proto.ContextInstance); ok && id != "" {
			a.instance = id
			break
		}
	}
	return a, unless(refusal(err), err)
}

// refusal reports whether an option was refused, and the connection lives on.
func refusal(err error) bool {
	var r *handshake.ReplyError
	return errors.As(err, &r) && !errors.Is(err, handshake.ErrShutdown)
}

// unless returns err if fine is false.
func unless(fine bool, err error) error {
	if fine {
		return nil
	}
	return err
}
