package tlsfiles

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"nbd.example/nbd/uri"
)

// What cannot be had is refused with a reason when the device is attached.
func TestNew(t *testing.T) {
	dir := t.TempDir()
	empty := filepath.Join(dir, "empty.pem")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		uri   string
		files *Files
		want  string // in the error; "" for none
		name  string
	}{
		{"nbds://host/", nil, "", "host"},
		{"nbds://host/?tls-hostname=other", &Files{Name: "third"}, "", "other"},
		{"nbds://host/", &Files{Name: "third"}, "", "third"},
		{"nbds+unix:///?socket=/s", nil, "no host name to verify", ""},
		{"nbds+unix:///?socket=/s", &Files{Insecure: true}, "", ""},
		{"nbds+unix:///?socket=/s&tls-verify-peer=1", &Files{Insecure: true}, "no host name to verify", ""},
		{"nbds://host/", &Files{CA: filepath.Join(dir, "none.pem")}, "certificate authority: open", ""},
		{"nbds://host/", &Files{CA: empty}, "there is no certificate in", ""},
		{"nbds://host/", &Files{Cert: empty}, "client certificate", ""},
		{"nbds://host/?tls-type=psk", nil, "without certificates", ""},
	} {
		u, err := uri.Parse(c.uri)
		if err != nil {
			t.Fatal(err)
		}
		s, err := New(u, c.files)
		switch {
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)):
			t.Errorf("%s, %+v: %v, want %q", c.uri, c.files, err, c.want)
		case c.want == "" && (err != nil || s.Get().ServerName != c.name):
			t.Errorf("%s, %+v: %v", c.uri, c.files, err)
		case strings.Contains(c.want, "without") && !errors.Is(err, errors.ErrUnsupported):
			t.Errorf("%s: %v", c.uri, err)
		}
	}
}
