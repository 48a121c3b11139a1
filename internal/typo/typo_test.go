package typo

import (
	"strings"
	"testing"
)

func TestNearest(t *testing.T) {
	known := []string{"readonly", "exportname", "port", "trim", "flush", "cow", "tls-verify-peer", "force_tls", "r"}
	for _, c := range []struct{ word, want string }{
		{"readonly", "readonly"}, {"read-only", "readonly"}, {"READ_ONLY", "readonly"}, {"readolny", "readonly"},
		{"exportnmae", "exportname"}, {"expotname", "exportname"}, {"exprotnme", "exportname"}, {"exportname[de]", "exportname"},
		{"prot", "port"}, {"prt", "port"}, {"trimm", "trim"}, {"flsuh", "flush"}, {"coww", "cow"}, {"ocw", "cow"}, {"rtim", "trim"}, {"rimt", "trim"},
		{"tls-verify-pear", "tls-verify-peer"}, {"force-tls", "force_tls"},
		{"", ""}, {"-", ""}, {"x", ""}, {"xyz", ""}, {"wco", ""}, {"pxyz", ""}, {"frob", ""}, {"xrx", ""}, {"trim" + strings.Repeat("m", 100), ""},
	} {
		if got := Nearest(c.word, known); got != c.want {
			t.Errorf("%q: %q, want %q", c.word, got, c.want)
		}
	}
	if got := Nearest("ab", []string{"ax", "ay"}); got != "ax" {
		t.Errorf("of two that are as near: %q", got)
	}
	if got := Nearest("trim", []string{strings.Repeat("trim", 100)}); got != "" {
		t.Errorf("a long one: %q", got)
	}
}

func TestDistance(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want int
	}{
		{"", "", 0}, {"", "abc", 3}, {"abc", "", 3}, {"abc", "abc", 0}, {"abc", "abd", 1}, {"abc", "ab", 1},
		{"abc", "xabc", 1}, {"abc", "acb", 1}, {"abcd", "badc", 2}, {"abc", "xyz", 3}, {"kitten", "sitting", 3},
	} {
		if got := distance(c.a, c.b); got != c.want {
			t.Errorf("%q, %q: %d, want %d", c.a, c.b, got, c.want)
		}
		if got := distance(c.b, c.a); got != c.want {
			t.Errorf("%q, %q: %d, want %d", c.b, c.a, got, c.want)
		}
	}
}

func TestTexts(t *testing.T) {
	if got := Hint("memroy", []string{"null", "memory"}); got != `; did you mean "memory"?` {
		t.Error(got)
	}
	if got := Hint("disk", []string{"null", "memory"}); got != "" {
		t.Error(got)
	}
	if got := Quote("a\x1b\"b"); got != `"a\x1b\"b"` {
		t.Error(got)
	}
	if got := Quote(strings.Repeat("x", 1<<20)); len(got) > 100 {
		t.Errorf("%d bytes are left of a long word", len(got))
	}
	for _, letter := range []string{"é", "€", "😀"} {
		for i := range len(letter) {
			if got := Quote(strings.Repeat("x", i) + strings.Repeat(letter, 100)); strings.Contains(got, `\x`) || strings.Count(got, letter) < 75/len(letter) {
				t.Errorf("a long word is cut within a letter: %s", got)
			}
		}
	}
	if got := Quote(strings.Repeat("\x80", 100)); strings.Count(got, `\x80`) < 75 {
		t.Errorf("of what is no text is left: %s", got)
	}
}

// FuzzNearest: whatever a word is, the answer is one of those that are known, or none.
func FuzzNearest(f *testing.F) {
	f.Add("prot", "port")
	f.Add("", "")
	f.Add("\xff-_", "é")
	f.Fuzz(func(t *testing.T, word, known string) {
		if got := Nearest(word, []string{known}); got != "" && got != known {
			t.Errorf("%q, %q: %q", word, known, got)
		}
		if a, b := distance(word[:min(len(word), longest)], known[:min(len(known), longest)]), max(len(word), len(known)); a < 0 || a > b {
			t.Errorf("%q, %q: distance %d", word, known, a)
		}
		Quote(word)
	})
}
