package guest

import (
	"bytes"
	"strings"
	"testing"
	"time"
)

// TestAgent runs scenarios here, without a machine.
func TestAgent(t *testing.T) {
	var order []string
	note := func(s string) func() { return func() { order = append(order, s) } }
	scenarios := []Scenario{
		{Name: "good", Run: func(t *T) { t.Logf("args %q", t.Args); t.Cleanup(note("last")); t.Cleanup(note("first")) }},
		{Name: "error", Run: func(t *T) { t.Error("wrong") }},
		{Name: "fatal", Run: func(t *T) { t.Cleanup(note("after fatal")); t.Fatalf("wrong"); note("never")() }},
		{Name: "panic", Run: func(*T) { panic("wrong") }},
		{Name: "skip", Run: func(t *T) { t.Skip("skipping is no passing") }},
		{Name: "cleanup", Run: func(t *T) { t.Cleanup(note("all the same")); t.Cleanup(func() { t.Fatal("wrong") }) }},
		{Name: "await", Run: func(t *T) { n := 0; t.Await("three", func() bool { n++; return n == 3 }) }},
	}
	for name, want := range map[string]string{
		"good": Pass, "await": Pass, "error": Fail, "fatal": Fail, "panic": Fail, "skip": Fail, "cleanup": Fail, "nobody": Fail,
	} {
		var out bytes.Buffer
		order = nil
		a := &agent{scenarios: scenarios, w: &out, leftovers: func(*T) {}}
		a.run(Command{Nonce: "n", Name: name, Args: []string{"x"}, Limit: time.Minute})
		lines := strings.Split(strings.TrimSpace(out.String()), "\n")
		if e, ok := ParseEvent(lines[len(lines)-1]); !ok || e != (Event{Kind: want, Nonce: "n"}) {
			t.Errorf("%s: the last line is %q, want %s", name, lines[len(lines)-1], want)
		}
		if want == Fail && len(lines) < 2 {
			t.Errorf("%s: failed without a reason", name)
		}
		got := strings.Join(order, ", ")
		if want := map[string]string{"good": "first, last", "fatal": "after fatal", "cleanup": "all the same"}[name]; got != want {
			t.Errorf("%s: cleaned up %q, want %q", name, got, want)
		}
	}
}
