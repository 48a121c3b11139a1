package chain

import (
	"fmt"
	"strings"
)

// names lists elements for an error text.
func names(list []Element) string {
	if len(list) == 0 {
		return "none"
	}
	s := make([]string, len(list))
	for i, e := range list {
		s[i] = e.Name
	}
	return strings.Join(s, ", ")
}

// suggest returns `; did you mean "x"?` if a known name is near.
func suggest(name string, list []Element) string {
	known := make([]string, len(list))
	for i, e := range list {
		known[i] = e.Name
	}
	return nearest(name, known)
}

func nearest(name string, known []string) string {
	if len(name) > 40 {
		return ""
	}
	best, least := "", 3 // at most two letters apart
	for _, k := range known {
		if d := distance(strings.ToLower(name), k); d < least && d < len(k) {
			best, least = k, d
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf("; did you mean %q?", best)
}

// distance counts the bytes to insert, remove or replace, or neighbours to swap,
// to make b of a.
func distance(a, b string) int {
	older, old := make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range old {
		old[j] = j
	}
	for i := range len(a) {
		row := make([]int, len(b)+1)
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			row[j+1] = min(old[j+1]+1, row[j]+1, old[j]+cost)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				row[j+1] = min(row[j+1], older[j-1]+1)
			}
		}
		older, old = old, row
	}
	return old[len(b)]
}

// unknownParam says that e has no parameter of that name.
func (e Element) unknownParam(key string) string {
	known := make([]string, len(e.Params))
	for i, p := range e.Params {
		known[i] = p.Name
	}
	return fmt.Sprintf("%q: unknown parameter %s%s; %s", e.Name, bounded(key, 40), nearest(key, known), e.paramList())
}

// paramList says what parameters e has.
func (e Element) paramList() string {
	if len(e.Params) == 0 {
		return fmt.Sprintf("%q has no parameters", e.Name)
	}
	s := make([]string, len(e.Params))
	for i, p := range e.Params {
		s[i] = p.Name
	}
	return "its parameters: " + strings.Join(s, ", ")
}

// example shows how a parameter is given.
func (e Element) example(p Param) string {
	v := map[Kind]string{Path: "/srv/disk.img", Size: "1G", Number: "1", Bool: "true", Duration: "10ms"}[p.Kind]
	if v == "" {
		v = "TEXT"
	}
	if p.Main {
		return e.Name + ":" + v
	}
	return e.Name + ":" + p.Name + "=" + v
}
