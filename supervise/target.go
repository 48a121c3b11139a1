package supervise

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"time"

	"nbd.example/nbd/internal/resolver"
	"nbd.example/nbd/internal/vsocket"
	"nbd.example/nbd/supervise/sock"
	"nbd.example/nbd/supervise/tlsfiles"
	"nbd.example/nbd/uri"
)

// target is one server that has the export, or the one in this process.
type target struct {
	name   string // of the server, for people: a URI without credentials
	export string
	tls    *tlsfiles.Source // nil in clear
	bare   int64            // the size of an export of which nothing is negotiated, or 0
	log    *slog.Logger
	// dial connects.
	dial func(ctx context.Context) (net.Conn, error)
	// failed is told when a connection could not be made: what was found out when the
	// device was attached may have changed. It does not wait.
	failed func()
}

// targets makes those of a Spec.
func (s *Supervisor) targets(ctx context.Context, spec *Spec) ([]*target, Local, error) {
	if spec.Serve != "" {
		if s.cfg.Local == nil {
			return nil, nil, fmt.Errorf("serve %q: this supervisor serves nothing itself", spec.Serve)
		}
		local, err := s.cfg.Local(ctx, spec.Serve, spec.ReadOnly)
		if err != nil {
			return nil, nil, fmt.Errorf("serve %q: %w", spec.Serve, err)
		}
		return []*target{{name: spec.Serve, log: s.log, dial: local.Dial, failed: func() {}}}, local, nil
	}
	var list []*target
	for _, text := range spec.URIs {
		t, err := s.target(text, spec)
		if err != nil {
			return nil, nil, err
		}
		list = append(list, t)
	}
	return list, nil, nil
}

// target makes one for a URI.
func (s *Supervisor) target(text string, spec *Spec) (*target, error) {
	u, err := uri.Parse(text)
	if err != nil {
		return nil, err
	}
	t := &target{name: plainURI(u), export: u.Export, log: s.log}
	if spec.Bare {
		t.bare = spec.Size
	}
	if u.TLS || spec.TLS != nil {
		if t.tls, err = tlsfiles.New(u, spec.TLS); err != nil {
			return nil, fmt.Errorf("%s: %w", t.name, err)
		}
	}
	network, address := u.Dial()
	dial := s.cfg.Dial
	switch {
	case dial != nil:
	case u.Transport == uri.VSock: // the kernel takes none: a relay is made of it
		dial = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return vsocket.Dial(ctx, vsocket.Addr{Context: u.CID, Port: u.Port})
		}
	default:
		dial = sock.Dialer(spec.patience())
	}
	refresh := func() {}
	if t.tls != nil {
		refresh = t.tls.Refresh
	}
	if s.cfg.Dial != nil || u.Transport != uri.TCP {
		t.dial = func(ctx context.Context) (net.Conn, error) { return dial(ctx, network, address) }
		t.failed = refresh
		return t, nil
	}
	r := resolver.New(u.Host, u.Port, dial)
	t.dial = r.Connect
	t.failed = func() { r.Refresh(); refresh() }
	return t, nil
}

// plainURI names a server and an export without saying who asks, or where its keys are.
func plainURI(u *uri.URI) string {
	plain := &uri.URI{Transport: u.Transport, TLS: u.TLS, Host: u.Host, Port: u.Port, CID: u.CID, Socket: u.Socket, Export: u.Export}
	return plain.String()
}

// patience is how long nothing may move on a TCP connection.
func (s *Spec) patience() time.Duration {
	if s.Timeout < 0 {
		return 5 * time.Minute
	}
	return max(s.kernelTimeout(), 30*time.Second)
}
