// Package resolver connects to a host whose name may soon be beyond look-up. The root file
// system may be on the device whose connection died; then looking names up would read
// files that nobody can read, and never end. So what was found at first is tried, and the
// name looked up anew only on the side.
package resolver

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"time"
)

// lookup asks the system's resolver.
func lookup(ctx context.Context, host string) ([]netip.Addr, error) {
	return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
}

// Resolver connects by TCP to one host, and remembers what its name stood for. Its methods
// may be called concurrently.
type Resolver struct {
	host   string
	port   uint32
	dial   func(ctx context.Context, network, address string) (net.Conn, error)
	lookup func(ctx context.Context, host string) ([]netip.Addr, error)

	mu    sync.Mutex
	addrs []netip.Addr
	busy  bool // somebody looks it up
}

// New makes one for a host, "" for this machine, and a port. dial connects to an address.
func New(host string, port uint32, dial func(ctx context.Context, network, address string) (net.Conn, error)) *Resolver {
	return &Resolver{host: host, port: port, dial: dial, lookup: lookup}
}

// Connect tries all addresses in order.
func (r *Resolver) Connect(ctx context.Context) (net.Conn, error) {
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
func (r *Resolver) tryOne(ctx context.Context, address string, left int) (net.Conn, error) {
	if deadline, ok := ctx.Deadline(); ok && left > 1 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, time.Until(deadline)/time.Duration(left))
		defer cancel()
	}
	return r.dial(ctx, "tcp", address)
}

// resolve returns the addresses.
func (r *Resolver) resolve(ctx context.Context) ([]netip.Addr, error) {
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

// Refresh looks the name up again, in the background, unless that is being done. The
// lookup may never end.
func (r *Resolver) Refresh() {
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
