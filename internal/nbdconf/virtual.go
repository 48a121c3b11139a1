package nbdconf

import (
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"nbd.example/nbd/internal/typo"
)

// VirtStyle is how a %s in a name becomes the client's address: one export is
// another file for each client. The zero value is the default, ipliteral.
type VirtStyle struct {
	Name string // "" (ipliteral), "none", "ipliteral", "iphash" or "cidrhash"
	Bits int    // of a cidrhash: the length of the network's prefix
}

// ParseVirtStyle reads the value of the key virtstyle. Where the reference takes
// any number behind cidrhash, one over 128 is 128 here.
func ParseVirtStyle(s string) (VirtStyle, error) {
	s = strings.Trim(s, space)
	switch s {
	case "none", "ipliteral", "iphash":
		return VirtStyle{Name: s}, nil
	}
	if bits, ok := strings.CutPrefix(s, "cidrhash"); ok {
		if n, err := strconv.ParseUint(strings.TrimLeft(bits, space), 10, 31); err == nil {
			return VirtStyle{"cidrhash", int(min(n, 128))}, nil
		}
	}
	return VirtStyle{}, fmt.Errorf("%s is not one of none, ipliteral, iphash and cidrhash N", typo.Quote(s))
}

// Expands tells whether name is another one for each client.
func (v VirtStyle) Expands(name string) bool {
	return v.Name != "none" && strings.Contains(name, "%s")
}

// Expand returns name for a client at addr: each %s becomes the client's address,
// and %% becomes %, as the reference has it. With the style none, name stays as it is.
func (v VirtStyle) Expand(name string, addr net.Addr) string {
	if v.Name == "none" {
		return name
	}
	return Substitute(name, v.text(addr))
}

// Substitute puts text in the place of each %s, and % in the place of each %%. Any
// other % stays.
func Substitute(s, text string) string {
	return strings.NewReplacer("%%", "%", "%s", text).Replace(s)
}

// text is what stands for a client: an IP address, or, where there is none, the
// kind of its socket.
func (v VirtStyle) text(addr net.Addr) string {
	if c, ok := addr.(interface{ CID() uint32 }); ok {
		return fmt.Sprintf("vsock-%d", c.CID())
	}
	ip, ok := ipOf(addr)
	if !ok {
		return "unix"
	}
	switch v.Name {
	case "iphash":
		return strings.ReplaceAll(ip.String(), ".", "/")
	case "cidrhash":
		// netip masks no address with a zone.
		p, err := ip.WithZone("").Prefix(min(v.Bits, ip.BitLen()))
		if err != nil {
			return ip.String()
		}
		return p.Addr().String() + "/" + ip.String()
	}
	return ip.String()
}

// ipOf returns the IP address of addr, if it has one; IPv4 as IPv4.
func ipOf(addr net.Addr) (netip.Addr, bool) {
	if t, ok := addr.(*net.TCPAddr); ok {
		a := t.AddrPort().Addr().Unmap()
		return a, a.IsValid()
	}
	if addr == nil {
		return netip.Addr{}, false
	}
	ap, err := netip.ParseAddrPort(addr.String())
	if err != nil {
		return netip.Addr{}, false
	}
	return ap.Addr().Unmap(), true
}
