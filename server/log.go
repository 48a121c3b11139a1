package server

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net"

	"nbd.example/nbd/block"
)

// maxQuoted bounds text from a peer in logs and errors, in bytes.
const maxQuoted = 128

// clip bounds text from a peer. The log's handler quotes it.
func clip(s string) string {
	if len(s) > maxQuoted {
		return s[:maxQuoted] + "…"
	}
	return s
}

// quote bounds and quotes a name.
func quote(s string) string { return fmt.Sprintf("%q", clip(s)) }

// addrText names a client in logs.
func addrText(a net.Addr) string {
	if a == nil {
		return "unknown"
	}
	if s := a.String(); s != "" && s != "@" {
		return s
	}
	return a.Network() // the client's end of a unix socket has no name
}

// tlsPeer names the holder of a client's certificate, or nobody.
func tlsPeer(t *tls.ConnectionState) string {
	if t == nil || len(t.PeerCertificates) == 0 {
		return ""
	}
	leaf := t.PeerCertificates[0]
	if leaf.Subject.CommonName == "" && len(leaf.DNSNames) > 0 {
		return clip(leaf.DNSNames[0])
	}
	return clip(leaf.Subject.CommonName)
}

// joinClose closes d after err.
func joinClose(err error, d *block.Device) error { return errors.Join(err, closeGuarded(d)) }
