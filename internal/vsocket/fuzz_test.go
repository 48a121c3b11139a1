package vsocket

import (
	"fmt"
	"testing"
)

// FuzzParse wants what was read to be read again as the same.
func FuzzParse(f *testing.F) {
	for _, s := range []string{"", ":", "2:10809", ":1", "4294967295:0", "4294967296:1", "1:2:3", "-1:+1", "07:08"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		a, err := Parse(s)
		if err != nil {
			if len(err.Error()) > 400 { // of %.80q, of which each byte may take four
				t.Errorf("an error of %d bytes", len(err.Error()))
			}
			return
		}
		again, err := Parse(fmt.Sprintf("%d:%d", a.Context, a.Port))
		if err != nil || again != a {
			t.Errorf("%q is %v, and read again %v, %v", s, a, again, err)
		}
	})
}
