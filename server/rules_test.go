package server

import (
	"net"
	"net/netip"
	"strings"
	"testing"

	"nbd.example/nbd/handshake"
)

func TestParseRules(t *testing.T) {
	tests := []struct {
		name, in string
		want     []string
		err      string
	}{
		{name: "empty"},
		{name: "comments only", in: "# nobody\n\n   \t# still nobody\n"},
		{name: "address", in: "10.0.0.1\n", want: []string{"10.0.0.1/32"}},
		{name: "no newline at the end", in: "::1", want: []string{"::1/128"}},
		{name: "prefixes", in: "192.168.0.0/16 # LAN\r\n2001:db8::/32\n", want: []string{"192.168.0.0/16", "2001:db8::/32"}},
		{name: "bits behind the prefix", in: "192.168.3.4/16", want: []string{"192.168.0.0/16"}},
		{name: "mapped address", in: "::ffff:10.1.2.3", want: []string{"10.1.2.3/32"}},
		{name: "mapped prefix", in: "::ffff:10.1.2.3/104", want: []string{"10.0.0.0/8"}},
		{name: "everybody", in: "0.0.0.0/0\n::/0", want: []string{"0.0.0.0/0", "::/0"}},
		{name: "mapped prefix too short", in: "::ffff:10.1.2.3/90", err: "auth:1: "},
		{name: "zone", in: "\nfe80::1%eth0", err: "auth:2: "},
		{name: "name", in: "1.2.3.4\n# x\nlocalhost\n", err: `auth:3: "localhost" is not an IP address`},
		{name: "two on a line", in: "1.2.3.4 5.6.7.8", err: "auth:1: "},
		{name: "too many bits", in: "1.2.3.4/33", err: "auth:1: "},
		{name: "no bits", in: "1.2.3.4/", err: "auth:1: "},
		{name: "a line without end", in: "1.2.3.4\n" + strings.Repeat("x", 1<<20), err: "auth:2: "},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r, err := ParseRules(strings.NewReader(tt.in), "auth")
			if tt.err != "" {
				if err == nil || !strings.HasPrefix(err.Error(), tt.err) || len(err.Error()) > 512 {
					t.Fatalf("error %v, want %q", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, p := range r.Prefixes {
				got = append(got, p.String())
			}
			if strings.Join(got, " ") != strings.Join(tt.want, " ") {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
}

type textAddr string

func (textAddr) Network() string  { return "tcp" }
func (a textAddr) String() string { return string(a) }

func TestRulesAllow(t *testing.T) {
	rules := func(s string) *Rules {
		r, err := ParseRules(strings.NewReader(s), "auth")
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	tcp := func(s string) net.Addr { return net.TCPAddrFromAddrPort(netip.MustParseAddrPort(s)) }
	tests := []struct {
		name  string
		rules *Rules
		addr  net.Addr
		want  bool
	}{
		{"no rules", nil, tcp("1.2.3.4:5"), true},
		{"empty list", rules(""), tcp("1.2.3.4:5"), false},
		{"inside", rules("10.0.0.0/8"), tcp("10.200.0.1:5"), true},
		{"outside", rules("10.0.0.0/8"), tcp("11.0.0.1:5"), false},
		{"not as text", rules("10.1.1.1"), tcp("10.1.1.10:5"), false},
		{"odd prefix", rules("10.0.0.128/25"), tcp("10.0.0.127:5"), false},
		{"mapped client", rules("10.0.0.0/8"), tcp("[::ffff:10.0.0.1]:5"), true},
		{"mapped rule", rules("::ffff:10.0.0.0/104"), tcp("10.0.0.1:5"), true},
		{"mapped client, all of IPv6", rules("::/0"), tcp("[::ffff:10.0.0.1]:5"), false},
		{"zone of the client", rules("fe80::/10"), tcp("[fe80::1%eth0]:5"), true},
		{"second rule", rules("10.0.0.0/8\n2001:db8::/32"), tcp("[2001:db8::1]:5"), true},
		{"address of another kind", rules("10.0.0.0/8"), textAddr("10.0.0.1:5"), true},
		{"address that is none", rules("10.0.0.0/8"), textAddr("somewhere"), false},
		{"no address", rules("0.0.0.0/0"), nil, false},
		{"unix", rules(""), &net.UnixAddr{Net: "unix"}, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := tt.rules.Allows(tt.addr); got != tt.want {
				t.Errorf("Allows(%v) = %v", tt.addr, got)
			}
		})
	}
}

// TestAllowNow: the rules are asked for each client that has an address, and nobody else
// waits for the answer.
func TestAllowNow(t *testing.T) {
	d := newDisk()
	asked, answer := make(chan struct{}), make(chan *Rules)
	x := &Export{Name: "a", Open: d.open, AllowNow: func() *Rules {
		asked <- struct{}{}
		return <-answer
	}}
	s := newServer(t, Config{Exports: []*Export{x}, AllowList: true}, d)
	for _, r := range []*Rules{mustRules(t, "10.0.0.1"), {}, nil} {
		go func() {
			<-asked
			s.Exports() // meanwhile
			answer <- r
		}()
		p := connect(t, s, tcpAddr("10.0.0.1"))
		if r != nil && len(r.Prefixes) == 0 {
			p.refused("a", handshake.ErrUnknown)
			p.abort()
		} else {
			p.use("a").leave()
		}
		go func() {
			<-asked
			answer <- r
		}()
		p = connect(t, s, tcpAddr("10.0.0.1"))
		all, err := p.c.List(testContext(t))
		if want := r.Allows(tcpAddr("10.0.0.1")); err != nil || len(all) == 1 != want {
			t.Errorf("%v: listed %v, %v", r, all, err)
		}
		p.abort()
	}
}

func FuzzParseRules(f *testing.F) {
	for _, s := range []string{"", "10.0.0.1", "192.168.0.0/16\n::1/128 # x", "::ffff:1.2.3.4/96", "fe80::1%x/10", "a/b/c"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := ParseRules(strings.NewReader(s), "f")
		if err != nil {
			return
		}
		for _, p := range r.Prefixes {
			if !p.IsValid() || p.Addr().Is4In6() {
				t.Fatalf("%q gives %v", s, p)
			}
			if a := p.Addr(); !r.Allows(net.TCPAddrFromAddrPort(netip.AddrPortFrom(a, 1))) {
				t.Fatalf("%q does not allow %v", s, a)
			}
		}
	})
}
