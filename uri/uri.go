// Package uri reads and writes NBD URIs.
//
// # Concepts
//
// An NBD URI says where a server listens, which export is wanted, and whether
// TLS must protect the connection:
//
//	nbd://example.com:10809/disk              TCP; the port is the default
//	nbds://example.com/disk                   TCP, TLS or nothing
//	nbd+unix:///disk?socket=/run/nbd.sock     a unix socket
//	nbds+unix:///disk?socket=%00name          TLS; an abstract socket of Linux
//	nbd+vsock://2:10809/disk                  a virtual machine's host
//
// The path without its first slash is the export's name, which is a text and
// not a path: "//disk" asks for "/disk", and a missing path for the default
// export "". Everything may be percent-encoded. As in RFC 3986, and unlike in
// HTML forms, a "+" is a plus sign.
//
// A scheme that begins with "nbds" demands TLS; the parameters whose names
// begin with "tls-" say how. [Parse] refuses parameters that it does not know,
// because a misspelt "tls-verify-peer" must not pass in silence, but for those
// whose names begin with "x-".
//
// The package follows uri.md of the NBD project, and takes in addition what
// libnbd understands: the vsock schemes, tls-username, tls-certificates and
// tls-psk-file.
package uri

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"sort"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Limits and defaults.
const (
	DefaultPort = 10809 // uri.md, "NBD URI authority"
	// HostCID is the vsock address of a virtual machine's host, the default
	// where the URI has none.
	HostCID = 2
	// maxExport is the protocol's limit of a string, in bytes. proto.md, "Conventions".
	maxExport = 4096
)

// Transport is how the server is reached.
type Transport int

// Transports.
const (
	TCP Transport = iota
	Unix
	VSock
)

// String returns the transport's name as net.Dial knows it.
func (t Transport) String() string {
	switch t {
	case TCP:
		return "tcp"
	case Unix:
		return "unix"
	case VSock:
		return "vsock"
	}
	return fmt.Sprintf("Transport(%d)", int(t))
}

// Verify says whether the server's identity must be verified.
type Verify int

// Values of tls-verify-peer.
const (
	VerifyDefault Verify = iota // the parameter is missing: verify
	VerifyNo                    // 0
	VerifyYes                   // 1
)

// URI is the meaning of an NBD URI. Fields that do not belong to its Transport
// are zero.
type URI struct {
	Transport Transport
	TLS       bool // the connection must be protected, or fail

	Host   string // TCP: a name or an address, without brackets; an IPv6 address may have a zone ("fe80::1%eth0")
	Port   uint32 // TCP and VSock
	CID    uint32 // VSock
	Socket string // Unix: a path; one that begins with NUL is abstract

	Export string // "" is the default export

	// User is who the client says it is, for TLS with pre-shared keys. Both the
	// authority's userinfo and tls-username set it.
	User            string
	TLSType         string // "anon", "x509", "psk" or ""
	TLSHostname     string // verified instead of Host
	TLSVerifyPeer   Verify
	TLSCertificates string // a directory with ca-cert.pem, client-cert.pem, client-key.pem
	TLSPSKFile      string // a file with lines "user:key"

	// Extra holds the parameters whose names begin with "x-", decoded.
	Extra map[string]string
}

var schemes = map[string]URI{
	"nbd":        {Transport: TCP},
	"nbds":       {Transport: TCP, TLS: true},
	"nbd+unix":   {Transport: Unix},
	"nbds+unix":  {Transport: Unix, TLS: true},
	"nbd+vsock":  {Transport: VSock},
	"nbds+vsock": {Transport: VSock, TLS: true},
}

// Parse reads an NBD URI. Its errors say what is wrong and how it is written.
func Parse(s string) (*URI, error) {
	u, err := parse(s)
	if err != nil {
		return nil, fmt.Errorf("NBD URI %.256q: %w", s, err)
	}
	return u, nil
}

// IsURI reports whether s begins with one of the schemes of NBD.
func IsURI(s string) bool {
	scheme, _, found := strings.Cut(s, ":")
	_, known := schemes[strings.ToLower(scheme)]
	return found && known
}

func parse(s string) (*URI, error) {
	p, err := url.Parse(s)
	if err != nil {
		var e *url.Error
		if errors.As(err, &e) {
			err = e.Err // without a second copy of s
		}
		return nil, err
	}
	u, known := schemes[p.Scheme]
	switch {
	case p.Scheme == "":
		return nil, errors.New("the scheme is missing: write nbd://HOST/EXPORT or nbd+unix:///EXPORT?socket=PATH")
	case !known:
		return nil, fmt.Errorf("unknown scheme %q: it must be one of nbd, nbds, nbd+unix, nbds+unix, nbd+vsock, nbds+vsock", p.Scheme)
	case p.Opaque != "" || !strings.HasPrefix(p.Path, "/") && p.Path != "":
		return nil, fmt.Errorf("%q is not followed by //: write %s://HOST/EXPORT, or for a unix socket nbd+unix:///EXPORT?socket=PATH", p.Scheme+":", p.Scheme)
	case strings.Contains(s, "#"):
		return nil, errors.New(`it has a fragment, which means nothing here: write "#" as %23`)
	}
	u.Export = strings.TrimPrefix(p.Path, "/")
	if err := checkExport(u.Export); err != nil {
		return nil, err
	}
	if err := u.authority(p); err != nil {
		return nil, err
	}
	if err := u.query(p.RawQuery); err != nil {
		return nil, err
	}
	if u.Transport == Unix && u.Socket == "" {
		return nil, fmt.Errorf("%s needs the name of the socket: add ?socket=PATH", p.Scheme)
	}
	return &u, nil
}

func checkExport(name string) error {
	switch {
	case len(name) > maxExport:
		return fmt.Errorf("an export name of %d bytes, over the limit of %d", len(name), maxExport)
	case strings.Contains(name, "\x00"):
		return errors.New("an export name must not have a NUL")
	case !utf8.ValidString(name):
		return errors.New("an export name must be UTF-8")
	}
	return nil
}

// authority reads what stands between // and the path.
func (u *URI) authority(p *url.URL) error {
	if p.User != nil {
		if _, has := p.User.Password(); has {
			return errors.New("it has a password, which NBD does not know: remove what follows the colon")
		}
		u.User = p.User.Username()
	}
	switch u.Transport {
	case Unix:
		if p.Host != "" {
			return fmt.Errorf("host %q with a unix socket: write %s:///EXPORT?socket=PATH with three slashes", p.Host, p.Scheme)
		}
	case TCP:
		if u.Host = p.Hostname(); u.Host == "" {
			u.Host = "localhost"
		}
		if err := checkHost(u.Host); err != nil {
			return err
		}
		return u.port(p.Port(), 16)
	case VSock:
		u.CID = HostCID
		if h := p.Hostname(); h != "" {
			cid, err := strconv.ParseUint(h, 10, 32)
			if err != nil {
				return fmt.Errorf("vsock address %q is not a number below 2^32", h)
			}
			u.CID = uint32(cid)
		}
		return u.port(p.Port(), 32)
	}
	return nil
}

const subDelims = "!$&'()*+,;=" // RFC 3986, section 2.2

func checkHost(host string) error {
	if strings.Contains(host, ":") {
		if _, err := netip.ParseAddr(host); err != nil {
			return fmt.Errorf("host %q is not an address: %w", host, err)
		}
		return nil
	}
	name := strings.IndexFunc(host, func(r rune) bool {
		return r == utf8.RuneError || r < 0x80 && !unreserved(byte(r)) && !strings.ContainsRune(subDelims, r)
	})
	if name >= 0 {
		return fmt.Errorf("host %q is not a name", host)
	}
	return nil
}

func unreserved(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || strings.IndexByte("-._~", c) >= 0
}

func (u *URI) port(s string, bits int) error {
	u.Port = DefaultPort
	if s == "" {
		return nil
	}
	n, err := strconv.ParseUint(s, 10, bits)
	if err != nil || n == 0 {
		return fmt.Errorf("port %q is not a number from 1 to %d", s, uint64(1)<<bits-1)
	}
	u.Port = uint32(n)
	return nil
}

// Dial returns what net.Dial takes. VSock is not a network that net knows.
func (u *URI) Dial() (network, address string) {
	switch u.Transport {
	case Unix:
		address = u.Socket
		switch {
		case strings.HasPrefix(address, "\x00"):
			address = "@" + address[1:]
		case strings.HasPrefix(address, "@"): // net would take it for an abstract one
			address = "./" + address
		}
		return "unix", address
	case VSock:
		return "vsock", fmt.Sprintf("%d:%d", u.CID, u.Port)
	}
	return "tcp", net.JoinHostPort(u.Host, strconv.Itoa(int(u.Port)))
}

// String writes u so that Parse reads it as an equal URI.
func (u *URI) String() string {
	var b strings.Builder
	b.WriteString("nbd")
	if u.TLS {
		b.WriteString("s")
	}
	if u.Transport != TCP {
		b.WriteString("+" + u.Transport.String())
	}
	b.WriteString("://")
	if u.User != "" {
		b.WriteString(escape(u.User, "") + "@")
	}
	switch u.Transport {
	case TCP:
		b.WriteString(escapeHost(u.Host))
	case VSock:
		fmt.Fprintf(&b, "%d", u.CID)
	}
	if u.Transport != Unix && u.Port != DefaultPort {
		fmt.Fprintf(&b, ":%d", u.Port)
	}
	b.WriteString("/" + escape(u.Export, "/:@"+subDelims))
	separator := "?"
	for _, p := range u.parameters() {
		b.WriteString(separator + escape(p[0], "") + "=" + escape(p[1], "/:@,"))
		separator = "&"
	}
	return b.String()
}

// parameters lists names and values in a fixed order.
func (u *URI) parameters() (out [][2]string) {
	add := func(name, value string) {
		if value != "" {
			out = append(out, [2]string{name, value})
		}
	}
	add("socket", u.Socket)
	add("tls-type", u.TLSType)
	add("tls-hostname", u.TLSHostname)
	switch u.TLSVerifyPeer {
	case VerifyNo:
		add("tls-verify-peer", "0")
	case VerifyYes:
		add("tls-verify-peer", "1")
	}
	add("tls-certificates", u.TLSCertificates)
	add("tls-psk-file", u.TLSPSKFile)
	names := make([]string, 0, len(u.Extra))
	for name := range u.Extra {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		out = append(out, [2]string{name, u.Extra[name]})
	}
	return out
}

// escapeHost writes a host as the authority has it. RFC 3986, section 3.2.2;
// RFC 6874 for the zone.
func escapeHost(host string) string {
	if strings.Contains(host, ":") {
		address, zone, found := strings.Cut(host, "%")
		if found {
			return "[" + escape(address, ":") + "%25" + escape(zone, "") + "]"
		}
		return "[" + escape(host, ":") + "]"
	}
	return escape(host, subDelims)
}

// escape encodes all bytes but RFC 3986's unreserved ones and those in also.
func escape(s, also string) string {
	var b strings.Builder
	for i := range len(s) {
		c := s[i]
		switch {
		case unreserved(c), strings.IndexByte(also, c) >= 0:
			b.WriteByte(c)
		default:
			fmt.Fprintf(&b, "%%%02X", c)
		}
	}
	return b.String()
}
