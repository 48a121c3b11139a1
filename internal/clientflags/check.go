package clientflags

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"nbd.example/nbd/internal/typo"
)

// Check returns what contradicts itself in f. It is called by Parse, and again for
// what [Flags.Over] has put together.
func (f *Flags) Check() error {
	servers := len(f.URIs) > 0 || f.Host != ""
	for _, c := range []struct {
		wrong bool
		text  string
	}{
		{f.SDP, "-sdp: Linux has no Sockets Direct Protocol any more; leave it away, and TCP is used"},
		{f.Serve != "" && servers, "--serve attaches something of this machine: it needs no server"},
		{f.Serve != "" && f.UsesTLS(), "--serve needs no TLS: nothing leaves this machine"},
		{f.Serve != "" && f.PreInit, "--serve and -preinit exclude each other"},
		{f.Serve != "" && f.Name != "", "--serve has no name: it attaches a chain, and not an export of a server"},
		{f.Serve != "" && f.NoSupervise, "--serve and --no-supervise exclude each other: without this process nobody would serve"},
		{f.Serve != "" && len(f.Also) > 0, "--serve has no other address: --also is for servers"},
		{f.Unix && len(f.URIs) > 0, "-unix is for a path; a URI with a socket is nbd+unix:///EXPORT?socket=PATH"},
		{f.Unix && f.Port != "", "-unix and a port exclude each other"},
		{f.Name != "" && len(f.URIs) > 0, "the export is named twice: by -name, and by the URI, whose path it is"},
		{f.Port != "" && len(f.URIs) > 0, "the port is part of the URI"},
		{len(f.Also) > 0 && len(f.URIs) > 0, "--also is for the form with a host; beside a URI, name more URIs"},
		{len(f.Also) > 0 && f.Unix, "--also is for hosts; name several sockets by URIs"},
		{f.PreInit && f.Size == 0 && f.Action == Attach, "-preinit needs -size: no server is asked for it"},
		{f.PreInit && f.UsesTLS(), "-preinit excludes TLS, which is negotiated"},
		{f.PreInit && f.Name != "", "-preinit excludes -name: no server is asked for it"},
		{f.Size != 0 && f.BlockSize != 0 && f.Size%f.BlockSize != 0, "-size is not a multiple of -block-size"},
		{f.Cert != "" && f.Key == "", "-certfile needs -keyfile; if both are in one file, -keyfile alone is enough"},
		{f.Insecure && (f.CA != "" || f.TLSHostname != ""), "what is not verified needs neither -cacertfile nor -tlshostname"},
		{f.NoSupervise && f.NoNetlink, "-nonetlink and --no-supervise exclude each other: by ioctl, a device lives in its process"},
		{f.NoSupervise && f.Persist, "-persist and --no-supervise exclude each other"},
	} {
		if c.wrong {
			return errors.New(c.text)
		}
	}
	for _, a := range f.Also {
		if _, _, err := SplitHost(a); err != nil {
			return fmt.Errorf("--also: %w", err)
		}
	}
	return nil
}

// SplitHost reads host, host:port, an IPv6 address with or without brackets, or
// [address]:port. The port is "" if there is none.
func SplitHost(s string) (host, port string, err error) {
	if strings.Contains(s, "://") {
		return "", "", fmt.Errorf("%s is no URI of NBD, which begins with one of %s", typo.Quote(s), strings.Join(schemes, ":// ")+"://")
	}
	if rest, ok := strings.CutPrefix(s, "["); ok {
		inside, after, closed := strings.Cut(rest, "]")
		a, err := netip.ParseAddr(inside)
		port, hasPort := strings.CutPrefix(after, ":")
		if !closed || err != nil || !a.Is6() || after != "" && !hasPort {
			return "", "", fmt.Errorf("%s is not an IPv6 address in brackets", typo.Quote(s))
		}
		if hasPort {
			port, err = parsePort(port)
		}
		return inside, port, err
	}
	host, port, has := strings.Cut(s, ":")
	if !has {
		return s, "", nil
	}
	if strings.Contains(port, ":") {
		if _, err := netip.ParseAddr(s); err != nil {
			return "", "", fmt.Errorf("%s is not an IPv6 address", typo.Quote(s))
		}
		return s, "", nil
	}
	port, err = parsePort(port)
	if err == nil && host == "" {
		err = fmt.Errorf("%s has no host", typo.Quote(s))
	}
	return host, port, err
}
