package nbdconf

import (
	"errors"
	"fmt"
	"math"
	"net"
	"strconv"
	"strings"

	"nbd.example/nbd/internal/typo"
)

// Address is one that a server listens on.
type Address struct {
	Network string // "tcp", "unix" or "vsock"
	// Host is an address or a name, "" for all addresses; for unix the path; for
	// vsock the number of the context, "" for any.
	Host string
	Port string // a number, or for tcp the name of a service; "" for unix
}

// ParseAddress reads an address of the key listen: tcp:HOST:PORT, unix:PATH or
// vsock:[CID:]PORT. "tcp:" may be left out; without a host, or with *, all
// addresses are meant; an IPv6 address stands in brackets.
func ParseAddress(s string) (Address, error) {
	a, err := parseAddress(s)
	if err != nil {
		return a, fmt.Errorf("address %s: %w", typo.Quote(s), err)
	}
	return a, nil
}

func parseAddress(s string) (a Address, err error) {
	kind, rest, _ := strings.Cut(s, ":")
	switch kind {
	case "unix":
		if rest == "" {
			return a, errors.New("the path is missing; write it like unix:/run/nbd.sock")
		}
		return Address{"unix", rest, ""}, nil
	case "vsock":
		a.Network, a.Port = "vsock", rest
		if cid, port, two := strings.Cut(rest, ":"); two {
			a.Host, a.Port = cid, port
		}
		for _, n := range []string{a.Host, a.Port} {
			if _, err := strconv.ParseUint(n, 10, 32); err != nil && (n != "" || n == a.Port) {
				return a, fmt.Errorf("%s is not a number; write it like vsock:10809", typo.Quote(n))
			}
		}
		return a, nil
	case "tcp":
		s = rest
	}
	a.Network = "tcp"
	if a.Host, a.Port, err = splitHostPort(s); err != nil {
		return a, err
	}
	if n, err := strconv.ParseUint(a.Port, 10, 64); err == nil && n > math.MaxUint16 {
		return a, fmt.Errorf("port %s is above 65535", a.Port)
	}
	if a.Port == "" || strings.ContainsAny(a.Port, " /\t") {
		return a, fmt.Errorf("%s is neither a port number nor the name of a service", typo.Quote(a.Port))
	}
	return a, nil
}

func splitHostPort(s string) (host, port string, err error) {
	if !strings.Contains(s, ":") {
		return "", s, nil
	}
	if host, port, err = net.SplitHostPort(s); err != nil {
		return "", "", errors.New("want HOST:PORT, with an IPv6 address in brackets, as [::1]:10809")
	}
	if host == "*" {
		host = ""
	}
	return host, port, nil
}
