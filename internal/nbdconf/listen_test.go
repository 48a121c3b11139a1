package nbdconf

import (
	"strings"
	"testing"
)

func TestParseAddress(t *testing.T) {
	for text, want := range map[string]Address{
		"10809":             {"tcp", "", "10809"},
		":10809":            {"tcp", "", "10809"},
		"*:10809":           {"tcp", "", "10809"},
		"tcp:10809":         {"tcp", "", "10809"},
		"tcp:127.0.0.1:0":   {"tcp", "127.0.0.1", "0"},
		"127.0.0.1:nbd":     {"tcp", "127.0.0.1", "nbd"},
		"[::1]:10809":       {"tcp", "::1", "10809"},
		"tcp:[::]:10809":    {"tcp", "::", "10809"},
		"host.example:1":    {"tcp", "host.example", "1"},
		"unix:/run/a:b":     {"unix", "/run/a:b", ""},
		"unix:@name":        {"unix", "@name", ""},
		"vsock:10809":       {"vsock", "", "10809"},
		"vsock:1:10809":     {"vsock", "1", "10809"},
		"vsock::4294967295": {"vsock", "", "4294967295"},
	} {
		if got, err := ParseAddress(text); err != nil || got != want {
			t.Errorf("%s: %+v, %v; want %+v", text, got, err, want)
		}
	}
	for text, want := range map[string]string{
		"": "neither a port number", "unix:": "the path is missing", "vsock:": "is not a number", "vsock:x": "is not a number",
		"vsock:x:1": "is not a number", "::1:10809": "in brackets", "1:2:3": "in brackets", "70000": "above 65535",
		"127.0.0.1:": "neither a port number", "127.0.0.1:70000": "above 65535", "a b": "neither a port number",
		"vsock:4294967296": "is not a number", "/run/sock": "neither a port number",
	} {
		if got, err := ParseAddress(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %+v, %v; want an error with %q", text, got, err, want)
		}
	}
}

func FuzzParseAddress(f *testing.F) {
	for _, s := range []string{"10809", "tcp:[::1]:1", "unix:/s", "vsock:1:2", "*:nbd", "[", ":::"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		a, err := ParseAddress(s)
		if err == nil && (a.Network == "" || a.Network == "unix" && a.Host == "" || a.Network != "unix" && a.Port == "") {
			t.Errorf("%q: taken as %+v", s, a)
		}
	})
}
