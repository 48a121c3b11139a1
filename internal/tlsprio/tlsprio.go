// Package tlsprio reads GnuTLS's priority strings, by which the reference's programs are
// told about TLS. Of what they say, only the versions can be obeyed: Go's crypto/tls
// chooses its suites by itself.
package tlsprio

import (
	"crypto/tls"
	"fmt"
	"strings"
)

// Versions takes from a priority string of GnuTLS what it says of versions, as numbers
// of crypto/tls, 0 for their defaults, and returns the words that have no effect. It
// fails if neither TLS 1.2 nor 1.3 is left.
func Versions(priority string) (min, max uint16, unknown []string, err error) {
	v12, v13 := true, true
	for i, word := range strings.Split(priority, ":") {
		on := strings.HasPrefix(word, "+")
		version, isVersion := strings.CutPrefix(strings.TrimLeft(word, "+-!"), "VERS-")
		switch {
		case word == "" || word == "%SERVER_PRECEDENCE":
		case i == 0 && isKeyword(word):
		case isVersion && (version == "TLS-ALL" || version == "ALL"):
			v12, v13 = on, on
		case isVersion && version == "TLS1.2":
			v12 = on
		case isVersion && version == "TLS1.3":
			v13 = on
		case isVersion && !on: // older ones are off
		default:
			unknown = append(unknown, word)
		}
	}
	switch {
	case v12 && v13:
		return 0, 0, unknown, nil
	case v12:
		return tls.VersionTLS12, tls.VersionTLS12, unknown, nil
	case v13:
		return tls.VersionTLS13, 0, unknown, nil
	}
	return 0, 0, unknown, fmt.Errorf("%q allows neither TLS 1.2 nor TLS 1.3", priority)
}

// isKeyword tells the words that a priority string may begin with.
func isKeyword(word string) bool {
	switch word {
	case "NORMAL", "SYSTEM", "@SYSTEM", "PERFORMANCE", "PFS":
		return true
	}
	return strings.HasPrefix(word, "SECURE")
}
