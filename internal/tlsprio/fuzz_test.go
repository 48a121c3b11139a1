package tlsprio

import (
	"crypto/tls"
	"strings"
	"testing"
)

// FuzzVersions wants versions that Go has, in order, and unknown words that stand in the
// text.
func FuzzVersions(f *testing.F) {
	for _, s := range []string{"", ":", "NORMAL", "NORMAL:-VERS-TLS-ALL:+VERS-TLS1.2:%SERVER_PRECEDENCE", "SECURE256:-VERS-ALL:+VERS-TLS1.3", "NORMAL:!VERS-TLS1.3:+-!VERS-", "@SYSTEM:%COMPAT"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		min, max, unknown, err := Versions(s)
		switch [2]uint16{min, max} {
		case [2]uint16{}, [2]uint16{tls.VersionTLS12, tls.VersionTLS12}, [2]uint16{tls.VersionTLS13, 0}:
		default:
			t.Errorf("%q: %x to %x", s, min, max)
		}
		if err != nil && min|max != 0 {
			t.Errorf("%q: %x to %x, and %v", s, min, max, err)
		}
		words := strings.Split(s, ":")
		for _, w := range unknown {
			for len(words) > 0 && words[0] != w {
				words = words[1:]
			}
			if len(words) == 0 {
				t.Errorf("%q: no such word: %q", s, w)
			}
		}
	})
}
