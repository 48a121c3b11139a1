package vsocket

import "testing"

func TestParse(t *testing.T) {
	for text, want := range map[string]Addr{"2:10809": {2, 10809}, ":1": {Any, 1}, "4294967295:0": {Any, 0}} {
		if got, err := Parse(text); err != nil || got != want {
			t.Errorf("%s: %v, %v; want %v", text, got, err, want)
		}
	}
	for _, bad := range []string{"", "1", "x:1", "1:x", "4294967296:1", "1:4294967296", "-1:1"} {
		if got, err := Parse(bad); err == nil {
			t.Errorf("%q was taken as %v", bad, got)
		}
	}
	if s := (Addr{Any, 7}).String(); s != "vsock:*:7" {
		t.Error(s)
	}
	if s := (Addr{3, 7}).String(); s != "vsock:3:7" {
		t.Error(s)
	}
}
