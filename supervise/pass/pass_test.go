package pass

import "testing"

func FuzzSockets(f *testing.F) {
	f.Add("nbd0-4711=7,nbd12-1=3")
	f.Add("nbd0-4711")
	f.Fuzz(func(t *testing.T, text string) {
		list, err := parseSockets(text)
		for _, s := range append(list, parseListen(1, "1", "9", text)...) {
			if !isName(s.name) || s.fd < 3 || err != nil && len(list) > 0 {
				t.Fatalf("%+v, %v", s, err)
			}
		}
	})
}

func TestParseListen(t *testing.T) {
	names := "socket:nbd0-12:nbd0-012:nbd3-7:nbd4-1"
	got := parseListen(5, "5", "4", names)
	if len(got) != 2 || got[0] != (inheritable{"nbd0-12", 4}) || got[1] != (inheritable{"nbd3-7", 6}) {
		t.Errorf("%v", got)
	}
	if got, want := strikeOut(names), "socket:taken:nbd0-012:taken:taken"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
	if got := append(parseListen(5, "6", "4", names), parseListen(5, "5", "x", names)...); len(got) != 0 {
		t.Errorf("%v", got)
	}
}
