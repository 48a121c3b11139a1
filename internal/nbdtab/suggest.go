package nbdtab

import (
	"fmt"
	"strconv"

	"nbd.example/nbd/internal/clientflags"
)

// suggest returns "; did you mean …?" or nothing.
func suggest(key string) string {
	var names []string
	for _, o := range clientflags.TabOptions() {
		names = append(names, o.Tab)
	}
	if name := clientflags.Nearest(key, names); name != "" {
		return fmt.Sprintf("; did you mean %q?", name)
	}
	return ""
}

// quote bounds and quotes a word for a message.
func quote(s string) string {
	const limit = 80
	if len(s) > limit {
		s = s[:limit] + "…"
	}
	return strconv.Quote(s)
}
