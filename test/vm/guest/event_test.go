package guest

import (
	"reflect"
	"testing"
	"time"
)

func TestEvent(t *testing.T) {
	want := Event{Kind: Log, Nonce: "17", Text: "two\nlines \x00 and \"quotes\""}
	line := string(want.Line())
	if got, ok := ParseEvent("[    1.0] noise " + line[:len(line)-1] + "\r"); !ok || got != want {
		t.Errorf("ParseEvent(%q) = %v, %t", line, got, ok)
	}
	for _, bad := range []string{"", "pass", mark, mark + "{", "pass 17"} {
		if e, ok := ParseEvent(bad); ok {
			t.Errorf("ParseEvent(%q) = %v", bad, e)
		}
	}
}

func TestCommand(t *testing.T) {
	for _, args := range [][]string{{}, {"a"}, {"a", "b"}} {
		want := Command{Nonce: "9", Limit: 90 * time.Second, Name: "ext4", Args: args}
		if got, err := ParseCommand(want.Line()); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("ParseCommand(%q) = %v, %v", want.Line(), got, err)
		}
	}
	for _, bad := range []string{"", "run", "run 1 x ext4", "walk 1 2 ext4"} {
		if c, err := ParseCommand(bad); err == nil {
			t.Errorf("ParseCommand(%q) = %v", bad, c)
		}
	}
}
