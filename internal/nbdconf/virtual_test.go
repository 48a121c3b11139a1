package nbdconf

import (
	"net"
	"path"
	"strings"
	"testing"
)

type vsockAddr struct{ net.Addr }

func (vsockAddr) CID() uint32 { return 42 }

// TestVirtStyle has the examples of the reference's manual, and what was measured of
// the reference where the manual is wrong.
func TestVirtStyle(t *testing.T) {
	v4 := &net.TCPAddr{IP: net.ParseIP("192.168.1.100"), Port: 1}
	mapped := &net.TCPAddr{IP: net.ParseIP("::ffff:192.168.1.100"), Port: 1}
	v6 := &net.TCPAddr{IP: net.ParseIP("2001:6f8:32f::39"), Port: 1}
	zone := &net.TCPAddr{IP: net.ParseIP("fe80::1"), Zone: "eth0"}
	for _, c := range []struct {
		style string
		addr  net.Addr
		want  string // of /export/%s
	}{
		{"none", v4, "/export/%s"},
		{"ipliteral", v4, "/export/192.168.1.100"},
		{"ipliteral", mapped, "/export/192.168.1.100"},
		{"ipliteral", v6, "/export/2001:6f8:32f::39"},
		{"ipliteral", zone, "/export/fe80::1%eth0"},
		{"ipliteral", &net.UnixAddr{}, "/export/unix"},
		{"ipliteral", nil, "/export/unix"},
		{"ipliteral", vsockAddr{}, "/export/vsock-42"},
		{"iphash", v4, "/export/192/168/1/100"},
		{"iphash", v6, "/export/2001:6f8:32f::39"},
		{"iphash", &net.UnixAddr{}, "/export/unix"},
		{"cidrhash 16", v4, "/export/192.168.0.0/192.168.1.100"},
		{"cidrhash 26", v4, "/export/192.168.1.64/192.168.1.100"},
		{"cidrhash 26", mapped, "/export/192.168.1.64/192.168.1.100"},
		{"cidrhash 0", v4, "/export/0.0.0.0/192.168.1.100"},
		{"cidrhash 42", v4, "/export/192.168.1.100/192.168.1.100"},
		{"cidrhash 42", v6, "/export/2001:6f8:300::/2001:6f8:32f::39"},
		{"cidrhash 64", zone, "/export/fe80::/fe80::1%eth0"},
		{"cidrhash 999", v6, "/export/2001:6f8:32f::39/2001:6f8:32f::39"},
		{"cidrhash 24", &net.UnixAddr{}, "/export/unix"},
	} {
		s, err := ParseVirtStyle(c.style)
		if err != nil {
			t.Errorf("%s: %v", c.style, err)
			continue
		}
		if got := s.Expand("/export/%s", c.addr); got != c.want {
			t.Errorf("%s for %v: %s, want %s", c.style, c.addr, got, c.want)
		}
	}
	for _, bad := range []string{"", "cidrhash", "cidrhash x", "cidrhash -1", "iphashes", "IPHASH"} {
		if s, err := ParseVirtStyle(bad); err == nil {
			t.Errorf("%q was taken as %+v", bad, s)
		}
	}
	var s VirtStyle
	if got := s.Expand("/a%s/%%s/100%/%s", v4); got != "/a192.168.1.100/%s/100%/192.168.1.100" {
		t.Errorf("several: %s", got)
	}
	if !s.Expands("/a%s") || s.Expands("/a%%") || (VirtStyle{Name: "none"}).Expands("/a%s") {
		t.Error("Expands is wrong about what names have in them")
	}
}

// FuzzVirtStyle wants each style that is taken to be one of the four, and a client's part
// of a path never to lead out of its folder.
func FuzzVirtStyle(f *testing.F) {
	for _, s := range []string{"", "none", "ipliteral", " iphash\t", "cidrhash", "cidrhash 24", "cidrhash999", "cidrhash -1", "cidrhash 99999999999"} {
		f.Add(s, []byte{192, 168, 1, 100}, "")
		f.Add(s, []byte(net.ParseIP("2001:6f8:32f::39")), "eth0")
	}
	f.Fuzz(func(t *testing.T, text string, ip []byte, zone string) {
		s, err := ParseVirtStyle(text)
		if err != nil {
			return
		}
		switch {
		case s.Name == "cidrhash" && s.Bits >= 0 && s.Bits <= 128:
		case s.Bits == 0 && (s.Name == "none" || s.Name == "ipliteral" || s.Name == "iphash"):
		default:
			t.Errorf("%q is %+v", text, s)
		}
		if strings.ContainsAny(zone, "/.%") {
			zone = "" // the system has no such names
		}
		got := s.Expand("/export/%s", &net.TCPAddr{IP: ip, Zone: zone})
		if path.Clean(got) != got || !strings.HasPrefix(got, "/export/") {
			t.Errorf("%q, % x: %s", text, ip, got)
		}
	})
}
