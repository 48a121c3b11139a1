// Package typo helps with words that somebody has typed and that are not known: it
// bounds them for a message, and finds what may have been meant.
package typo

import (
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Quote quotes a word for a message, and cuts a long one, between two letters.
func Quote(word string) string {
	const limit = 80
	if len(word) > limit {
		n := limit
		for n > limit-utf8.UTFMax && !utf8.RuneStart(word[n]) {
			n--
		}
		word = word[:n] + "…"
	}
	return strconv.Quote(word)
}

// Hint returns `; did you mean "x"?` if one of the known words is near, else "".
func Hint(word string, known []string) string {
	if best := Nearest(word, known); best != "" {
		return fmt.Sprintf("; did you mean %q?", best)
	}
	return ""
}

// longest is the length of words beyond which none is near, in bytes.
const longest = 64

// Nearest returns the one of the known words that word is likely to be a misspelling of,
// the first of several, or "". A third of its letters may be wrong, or two of them, but
// not more than half. The case of letters does not count, nor do dashes and underscores.
func Nearest(word string, known []string) string {
	word = plain(word)
	if len(word) > longest {
		return ""
	}
	best, least := "", min(max(2, len(word)/3), len(word)/2)+1
	for _, k := range known {
		p := plain(k)
		if len(p) > longest {
			continue
		}
		if d := distance(word, p); d < least && d < len(p) {
			best, least = k, d
		}
	}
	return best
}

func plain(s string) string {
	return strings.NewReplacer("-", "", "_", "").Replace(strings.ToLower(s))
}

// distance counts the bytes to insert, remove or replace, or neighbours to swap, to make
// b of a.
func distance(a, b string) int {
	older, old, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range old {
		old[j] = j
	}
	for i := range len(a) {
		row[0] = i + 1
		for j := range len(b) {
			change := old[j]
			if a[i] != b[j] {
				change++
			}
			row[j+1] = min(old[j+1]+1, row[j]+1, change)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				row[j+1] = min(row[j+1], older[j-1]+1)
			}
		}
		older, old, row = old, row, older
	}
	return old[len(b)]
}
