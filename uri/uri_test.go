package uri_test

import (
	"fmt"
	"reflect"
	"strings"
	"testing"

	"nbd.example/nbd/uri"
)

func TestParse(t *testing.T) {
	tcp := func(host, export string) uri.URI {
		return uri.URI{Host: host, Port: uri.DefaultPort, Export: export}
	}
	unix := func(socket, export string) uri.URI {
		return uri.URI{Transport: uri.Unix, Socket: socket, Export: export}
	}
	with := func(u uri.URI, f func(*uri.URI)) uri.URI { f(&u); return u }
	for in, want := range map[string]uri.URI{
		// The table of uri.md, "NBD URI export name".
		"nbd://example.com/disk":          tcp("example.com", "disk"),
		"nbd+unix:///disk?socket=sock":    unix("sock", "disk"),
		"nbd://example.com/":              tcp("example.com", ""),
		"nbd://example.com":               tcp("example.com", ""),
		"nbd://example.com//disk":         tcp("example.com", "/disk"),
		"nbd://example.com/hello%20world": tcp("example.com", "hello world"),

		"nbd://example.com:10810/disk":     with(tcp("example.com", "disk"), func(u *uri.URI) { u.Port = 10810 }),
		"nbd://example.com:/disk":          tcp("example.com", "disk"),
		"NBD://example.com/disk":           tcp("example.com", "disk"),
		"nbd:///disk":                      tcp("localhost", "disk"),
		"nbd://":                           tcp("localhost", ""),
		"nbd://h/a/b%2Fc+d?":               tcp("h", "a/b/c+d"),
		"nbd://h/%C3%A4":                   tcp("h", "ä"),
		"nbd://[::1]/x":                    tcp("::1", "x"),
		"nbd://[fe80::1%25eth0]:1/x":       with(tcp("fe80::1%eth0", "x"), func(u *uri.URI) { u.Port = 1 }),
		"nbds://h/x":                       with(tcp("h", "x"), func(u *uri.URI) { u.TLS = true }),
		"nbds://alice@h/x":                 with(tcp("h", "x"), func(u *uri.URI) { u.TLS, u.User = true, "alice" }),
		"nbd+unix:/disk?socket=s":          unix("s", "disk"),
		"nbd+unix://?socket=/a+b%26c":      unix("/a+b&c", ""),
		"nbd+unix:////d?socket=s":          unix("s", "/d"),
		"nbd+unix:///?socket=%00/abstract": unix("\x00/abstract", ""),
		"nbds+unix://bob@/?socket=s":       with(unix("s", ""), func(u *uri.URI) { u.TLS, u.User = true, "bob" }),
		"nbd+vsock:///x":                   {Transport: uri.VSock, CID: 2, Port: 10809, Export: "x"},
		"nbds+vsock://3:70000/":            {Transport: uri.VSock, TLS: true, CID: 3, Port: 70000},

		"nbds://h/?tls-type=x509&tls-hostname=n&tls-verify-peer=0&tls-username=u&tls-certificates=/c&tls-psk-file=k&x-a=b": with(tcp("h", ""), func(u *uri.URI) {
			u.TLS, u.TLSType, u.TLSHostname, u.TLSVerifyPeer, u.User = true, "x509", "n", uri.VerifyNo, "u"
			u.TLSCertificates, u.TLSPSKFile, u.Extra = "/c", "k", map[string]string{"x-a": "b"}
		}),
		"nbds://u@h/?tls-verify-peer=1&tls-username=u": with(tcp("h", ""), func(u *uri.URI) {
			u.TLS, u.TLSVerifyPeer, u.User = true, uri.VerifyYes, "u"
		}),
	} {
		got, err := uri.Parse(in)
		if err != nil {
			t.Errorf("%s: %v", in, err)
			continue
		}
		if !reflect.DeepEqual(*got, want) {
			t.Errorf("%s:\n%+v, want\n%+v", in, *got, want)
		}
		again, err := uri.Parse(got.String())
		if err != nil || !reflect.DeepEqual(again, got) {
			t.Errorf("%s became %s: %+v, %v", in, got, again, err)
		}
		if !uri.IsURI(in) {
			t.Errorf("IsURI(%q) is false", in)
		}
	}
}

func TestParseErrors(t *testing.T) {
	for in, want := range map[string]string{
		"":                                        "scheme is missing",
		"/dev/sda":                                "scheme is missing",
		"http://h/x":                              `unknown scheme "http"`,
		"nbd:localhost:10809:exportname=x":        "not followed by //",
		"nbd:unix:/tmp/s":                         "not followed by //",
		"nbd://h:0/":                              `port "0"`,
		"nbd://h:65536/":                          `port "65536"`,
		"nbd://h:a/":                              "port",
		"nbd://[::1/":                             "]",
		"nbd://u:p@h/":                            "password",
		"nbd://h/x#y":                             "%23",
		"nbd://h/x#":                              "%23",
		"nbd://h/%00":                             "NUL",
		"nbd://h/%ff":                             "UTF-8",
		"nbd://h/" + strings.Repeat("x", 4097):    "4097 bytes",
		"nbd+unix:///x":                           "socket=PATH",
		"nbd+unix:///x?socket=":                   "empty",
		"nbd+unix:///x?socket=%00":                "abstract",
		"nbd+unix:///x?socket=a%00b":              "NUL",
		"nbd+unix://host/x?socket=s":              "three slashes",
		"nbd://h/?socket=s":                       "nbd+unix:///",
		"nbds://h/?socket=s":                      "nbds+unix:///",
		"nbds://h/?tls-verify-pear=0":             `did you mean "tls-verify-peer"`,
		"nbds://h/?completely-different=0":        "known are",
		"nbds://h/?tls-verify-peer=no":            "0 or 1",
		"nbds://h/?tls-type=rsa":                  "anon, x509 or psk",
		"nbds://h/?tls-hostname=a&tls-hostname=b": "twice",
		"nbds://a@h/?tls-username=b":              "two user names",
		"nbds://h/?tls-hostname=a%00":             "NUL",
		"nbds://h/?x-a=%zz":                       "x-a",
		"nbds://h/?%zz":                           "%zz",
		"nbd+vsock://host/":                       "vsock address",
	} {
		u, err := uri.Parse(in)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %+v, %v: want an error with %q", in, u, err, want)
		}
	}
	if uri.IsURI("/nbd:x") || uri.IsURI("nbd") {
		t.Error("IsURI takes what is none")
	}
}

func TestDial(t *testing.T) {
	for in, want := range map[string][2]string{
		"nbd://h/":                    {"tcp", "h:10809"},
		"nbd://[fe80::1%25eth0]:7/":   {"tcp", "[fe80::1%eth0]:7"},
		"nbd+unix:///?socket=/run/s":  {"unix", "/run/s"},
		"nbd+unix:///?socket=%00name": {"unix", "@name"},
		"nbd+unix:///?socket=@name":   {"unix", "./@name"},
		"nbd+vsock://3:5/":            {"vsock", "3:5"},
	} {
		u, err := uri.Parse(in)
		if err != nil {
			t.Fatal(err)
		}
		if network, address := u.Dial(); network != want[0] || address != want[1] {
			t.Errorf("%s: %s %s, want %v", in, network, address, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{
		"nbd://example.com:10809/disk", "nbds+unix://u@/a%20b?socket=%00x&tls-type=psk", "nbd+vsock://2:1/",
		"nbd://[fe80::1%25eth0]/?x-y=1&tls-verify-peer=1", "nbd:unix:/s", "nbd://h/#", "nbd://%41/",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		u, err := uri.Parse(s)
		if err != nil {
			return
		}
		again, err := uri.Parse(u.String())
		if err != nil || !reflect.DeepEqual(u, again) {
			t.Fatalf("%q is %+v, written %q is %+v, %v", s, u, u, again, err)
		}
	})
}

func ExampleParse() {
	u, err := uri.Parse("nbds+unix:///my%20disk?socket=/run/nbd.sock&tls-hostname=example.com")
	if err != nil {
		fmt.Println(err)
		return
	}
	network, address := u.Dial()
	fmt.Println(network, address)
	fmt.Printf("%q, TLS: %v, verified as %s\n", u.Export, u.TLS, u.TLSHostname)
	// Output:
	// unix /run/nbd.sock
	// "my disk", TLS: true, verified as example.com
}

func ExampleParse_mistake() {
	_, err := uri.Parse("nbds://example.com/disk?tls-verify-pear=0")
	fmt.Println(err)
	// Output: NBD URI "nbds://example.com/disk?tls-verify-pear=0": unknown parameter "tls-verify-pear"; did you mean "tls-verify-peer"?
}

func ExampleURI_String() {
	u := uri.URI{Host: "fe80::1%eth0", Port: 10810, Export: "a disk"}
	fmt.Println(u.String())
	// Output: nbd://[fe80::1%25eth0]:10810/a%20disk
}
