package tlsprio

import (
	"crypto/tls"
	"strings"
	"testing"
)

func TestVersions(t *testing.T) {
	for _, c := range []struct {
		prio     string
		min, max uint16
		unknown  string
	}{
		{"", 0, 0, ""},
		{"NORMAL", 0, 0, ""},
		{"NORMAL:-VERS-TLS-ALL:+VERS-TLS1.2:%SERVER_PRECEDENCE", tls.VersionTLS12, tls.VersionTLS12, ""},
		{"NORMAL:-VERS-TLS-ALL:+VERS-TLS1.3", tls.VersionTLS13, 0, ""},
		{"SECURE256:-VERS-ALL:+VERS-TLS1.2:+VERS-TLS1.3:-VERS-TLS1.0", 0, 0, ""},
		{"NORMAL:!VERS-TLS1.3", tls.VersionTLS12, tls.VersionTLS12, ""},
		{"NORMAL:+VERS-TLS1.1:-CIPHER-ALL:%COMPAT", 0, 0, "+VERS-TLS1.1 -CIPHER-ALL %COMPAT"},
		{"NORMAL:-VERS-TLS-ALL", 0, 0, "error"},
	} {
		min, max, unknown, err := Versions(c.prio)
		if c.unknown == "error" {
			if err == nil {
				t.Errorf("%q: no error", c.prio)
			}
			continue
		}
		if err != nil || min != c.min || max != c.max || strings.Join(unknown, " ") != c.unknown {
			t.Errorf("%q: %x to %x, unknown %q, %v", c.prio, min, max, unknown, err)
		}
	}
}
