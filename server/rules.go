package server

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
)

// Rules say which addresses may connect.
type Rules struct {
	Prefixes []netip.Prefix // an empty list lets nobody in
}

// ParseRules reads a list of addresses: on each line an IP address or a CIDR
// prefix, as 10.0.0.1, 192.168.0.0/16 or 2001:db8::/32. What follows a # is a
// comment. Bits behind the prefix do not matter. An empty list lets nobody in.
// The name is that of the list, for errors, which have the form "name:line: …".
func ParseRules(r io.Reader, name string) (*Rules, error) {
	rules := &Rules{}
	in := bufio.NewScanner(r)
	line := 1
	for ; in.Scan(); line++ {
		text, _, _ := bytes.Cut(in.Bytes(), []byte("#"))
		text = bytes.TrimSpace(text)
		if len(text) == 0 {
			continue
		}
		p, err := parsePrefix(string(text))
		if err != nil {
			return nil, fmt.Errorf("%s:%d: %w", name, line, err)
		}
		rules.Prefixes = append(rules.Prefixes, p)
	}
	if err := in.Err(); err != nil {
		return nil, fmt.Errorf("%s:%d: %w", name, line, err)
	}
	return rules, nil
}

// parsePrefix reads an address or a prefix. IPv4 in IPv6 becomes IPv4, as
// clients' addresses do before they are compared.
func parsePrefix(s string) (netip.Prefix, error) {
	bad := func(why string) (netip.Prefix, error) {
		return netip.Prefix{}, fmt.Errorf("%s is not an IP address or CIDR prefix%s", quote(s), why)
	}
	if !strings.Contains(s, "/") {
		a, err := netip.ParseAddr(s)
		switch {
		case err != nil:
			return bad("")
		case a.Zone() != "":
			return bad(": a zone cannot be compared, leave out what follows the %")
		}
		a = a.Unmap()
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	p, err := netip.ParsePrefix(s)
	if err != nil {
		return bad("")
	}
	if a := p.Addr(); a.Is4In6() {
		if p.Bits() < 96 {
			return bad(": an IPv4 address in IPv6 needs at least 96 bits")
		}
		p = netip.PrefixFrom(a.Unmap(), p.Bits()-96)
	}
	return p.Masked(), nil
}

// Allows tells whether a client at addr may connect. Clients on unix sockets
// and inside this process have no address to compare, and always may; the rights
// of the socket's file are the rule for them. A nil *Rules lets everybody in.
func (r *Rules) Allows(addr net.Addr) bool {
	if r == nil {
		return true
	}
	if addr == nil {
		return false
	}
	switch addr.Network() {
	case "unix", "unixpacket", "pipe":
		return true
	}
	ip, ok := addressOf(addr)
	if !ok {
		return false
	}
	for _, p := range r.Prefixes {
		if p.Contains(ip) {
			return true
		}
	}
	return false
}

// allows tells whether a client at addr may use x. No lock may be held: AllowNow may look at
// a file.
func (x *Export) allows(addr net.Addr) bool {
	if x.AllowNow == nil || new(Rules).Allows(addr) { // who has no address to compare always may
		return x.Allow.Allows(addr)
	}
	return x.AllowNow().Allows(addr)
}

// addressOf returns the IP address of addr in the form that rules have: IPv4
// as IPv4, without a zone.
func addressOf(addr net.Addr) (netip.Addr, bool) {
	var ap netip.AddrPort
	if t, ok := addr.(*net.TCPAddr); ok {
		ap = t.AddrPort()
	} else {
		var err error
		if ap, err = netip.ParseAddrPort(addr.String()); err != nil {
			return netip.Addr{}, false
		}
	}
	a := ap.Addr().Unmap().WithZone("")
	return a, a.IsValid()
}

// equal tells whether both let the same addresses in, as far as their lists
// are the same.
func (r *Rules) equal(o *Rules) bool {
	if r == nil || o == nil {
		return r == o
	}
	return slices.Equal(r.Prefixes, o.Prefixes)
}
