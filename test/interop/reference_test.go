package interop

import (
	"slices"
	"strconv"
	"strings"
	"testing"

	"nbd.example/nbd/internal/testgate"
	"nbd.example/nbd/test/harness"
)

// TestReferenceList lets the reference's client list the exports.
func TestReferenceList(t *testing.T) {
	t.Parallel()
	testgate.Requires(t, testgate.Program("nbd-client"))
	s := harness.Start(t, harness.Config{
		TCP:     true,
		Exports: section("first", "memory:1M") + section("second", "memory:2M") + section("with space", "memory:1M"),
	})
	for name, args := range map[string][]string{
		"tcp":  {"-l", "127.0.0.1", strconv.Itoa(s.Port)},
		"unix": {"-l", "-unix", s.Socket},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var names []string
			for line := range strings.Lines(harness.Run(t, "nbd-client", args...)) {
				names = append(names, strings.TrimSpace(line))
			}
			for _, want := range []string{"first", "second", "with space"} {
				if !slices.Contains(names, want) {
					t.Errorf("nbd-client %q lists %q, want %q among them", args, names, want)
				}
			}
		})
	}
}
