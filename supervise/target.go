package supervise

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"nbd.example/nbd/uri"
)

// target is one server that has the export, or the one in this process.
type target struct {
	name   string // of the server, for people: a URI without credentials
	export string
	tls    *tlsSource // nil in clear
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
		return []*target{{name: spec.Serve, dial: local.Dial, failed: func() {}}}, local, nil
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
	t := &target{name: plainURI(u), export: u.Export}
	if u.Transport == uri.VSock {
		return nil, fmt.Errorf("%s: connections by vsock: %w", t.name, errors.ErrUnsupported)
	}
	if u.TLS || spec.TLS != nil {
		if t.tls, err = newTLSSource(u, spec.TLS); err != nil {
			return nil, fmt.Errorf("%s: %w", t.name, err)
		}
	}
	network, address := u.Dial()
	dial := s.cfg.Dial
	if dial == nil {
		dial = dialer(spec.patience())
	}
	refresh := func() {}
	if t.tls != nil {
		refresh = t.tls.refresh
	}
	if s.cfg.Dial != nil || u.Transport != uri.TCP {
		t.dial = func(ctx context.Context) (net.Conn, error) { return dial(ctx, network, address) }
		t.failed = refresh
		return t, nil
	}
	r := &resolver{host: u.Host, port: u.Port, dial: dial, lookup: lookup}
	t.dial = r.connect
	t.failed = func() { r.refresh(); refresh() }
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

// lookup asks the system's resolver.
func lookup(ctx context.Context, host string) ([]netip.Addr, error) {
	return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
}

// resolver connects by TCP, and remembers what a name stood for. The root file system
// may be on the device whose connection died; then looking names up would read files
// that nobody can read, and never end. So what was found at first is tried, and the name
// looked up anew only on the side.
type resolver struct {
	host   string
	port   uint32
	dial   func(ctx context.Context, network, address string) (net.Conn, error)
	lookup func(ctx context.Context, host string) ([]netip.Addr, error)

	mu    sync.Mutex
	addrs []netip.Addr
	busy  bool // somebody looks it up
}

// connect tries all addresses in order.
func (r *resolver) connect(ctx context.Context) (net.Conn, error) {
	addrs, err := r.resolve(ctx)
	if err != nil {
		return nil, err
	}
	port := strconv.FormatUint(uint64(r.port), 10)
	var failed []error
	for i, a := range addrs {
		conn, err := r.tryOne(ctx, net.JoinHostPort(a.String(), port), len(addrs)-i)
		if err == nil {
			return conn, nil
		}
		failed = append(failed, err)
		if ctx.Err() != nil {
			break
		}
	}
	return nil, errors.Join(failed...)
}

// tryOne connects to one of so many addresses that are left, within its share of the
// time.
func (r *resolver) tryOne(ctx context.Context, address string, left int) (net.Conn, error) {
	if deadline, ok := ctx.Deadline(); ok && left > 1 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Until(deadline)/time.Duration(left))
		defer cancel()
	}
	return r.dial(ctx, "tcp", address)
}

// resolve returns the addresses.
func (r *resolver) resolve(ctx context.Context) ([]netip.Addr, error) {
	r.mu.Lock()
	addrs := r.addrs
	r.mu.Unlock()
	if addrs != nil {
		return addrs, nil
	}
	host := r.host
	if host == "" {
		host = "localhost"
	}
	if a, err := netip.ParseAddr(host); err == nil {
		addrs = []netip.Addr{a}
	} else if addrs, err = r.lookup(ctx, host); err != nil {
		return nil, err
	}
	for i := range addrs {
		addrs[i] = addrs[i].Unmap()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.addrs = addrs
	return addrs, nil
}

// refresh looks the name up again, in the background, unless that is being done. It may
// never end: see resolver.
func (r *resolver) refresh() {
	if _, err := netip.ParseAddr(r.host); err == nil || r.host == "" {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.busy || r.addrs == nil {
		return
	}
	r.busy = true
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		addrs, err := r.lookup(ctx, r.host)
		r.mu.Lock()
		defer r.mu.Unlock()
		r.busy = false
		if err == nil && len(addrs) > 0 {
			for i := range addrs {
				addrs[i] = addrs[i].Unmap()
			}
			r.addrs = addrs
		}
	}()
}
