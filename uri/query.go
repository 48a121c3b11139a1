package uri

import (
	"errors"
	"fmt"
	"net/url"
	"strings"

	"nbd.example/nbd/internal/typo"
)

// known lists the parameters that Parse understands, for its suggestions.
var known = []string{"socket", "tls-type", "tls-hostname", "tls-verify-peer", "tls-username", "tls-certificates", "tls-psk-file"}

// query reads the parameters. They are not those of an HTML form: only
// percent-encoding is decoded. uri.md, "NBD URI components".
func (u *URI) query(raw string) error {
	seen := map[string]bool{}
	for raw != "" {
		var part string
		part, raw, _ = strings.Cut(raw, "&")
		if part == "" {
			continue
		}
		n, v, _ := strings.Cut(part, "=")
		name, err := url.PathUnescape(n)
		if err != nil {
			return fmt.Errorf("parameter %.64q: %w", n, err)
		}
		value, err := url.PathUnescape(v)
		if err != nil {
			return fmt.Errorf("parameter %.64q: %w", name, err)
		}
		if seen[name] {
			return fmt.Errorf("parameter %.64q is there twice", name)
		}
		seen[name] = true
		if err := u.parameter(name, value); err != nil {
			return err
		}
	}
	return nil
}

func (u *URI) parameter(name, value string) error {
	if strings.HasPrefix(name, "x-") {
		if u.Extra == nil {
			u.Extra = map[string]string{}
		}
		u.Extra[name] = value
		return nil
	}
	if name != "socket" && strings.Contains(value, "\x00") {
		return fmt.Errorf("parameter %.64q has a NUL", name)
	}
	switch name {
	case "socket":
		return u.socket(value)
	case "tls-type":
		if value != "anon" && value != "x509" && value != "psk" {
			return fmt.Errorf("tls-type is %.64q: it must be anon, x509 or psk", value)
		}
		u.TLSType = value
	case "tls-hostname":
		u.TLSHostname = value
	case "tls-verify-peer":
		switch value {
		case "0":
			u.TLSVerifyPeer = VerifyNo
		case "1":
			u.TLSVerifyPeer = VerifyYes
		default:
			return fmt.Errorf("tls-verify-peer is %.64q: it must be 0 or 1", value)
		}
	case "tls-username":
		if u.User != "" && u.User != value {
			return fmt.Errorf("two user names, %.64q before the @ and tls-username=%.64q", u.User, value)
		}
		u.User = value
	case "tls-certificates":
		u.TLSCertificates = value
	case "tls-psk-file":
		u.TLSPSKFile = value
	default:
		return unknown(name)
	}
	return nil
}

func (u *URI) socket(value string) error {
	switch {
	case u.Transport != Unix:
		scheme := "nbd+unix"
		if u.TLS {
			scheme = "nbds+unix"
		}
		return fmt.Errorf("parameter socket without a unix socket's scheme: write %s:///EXPORT?socket=PATH", scheme)
	case value == "":
		return errors.New("parameter socket is empty")
	case value == "\x00":
		return errors.New("parameter socket names no abstract socket: something must follow %00")
	case strings.Contains(value[1:], "\x00") && value[0] != 0:
		return errors.New("a socket's path must not have a NUL, but for one at its start, which makes it abstract")
	}
	u.Socket = value
	return nil
}

func unknown(name string) error {
	if hint := typo.Hint(name, known); hint != "" {
		return fmt.Errorf("unknown parameter %.64q%s", name, hint)
	}
	return fmt.Errorf("unknown parameter %.64q: known are %s", name, strings.Join(known, ", "))
}
