package chain

import (
	"fmt"
	"strings"

	"nbd.example/nbd/internal/typo"
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
	return typo.Hint(name, known)
}

// unknownParam says that e has no parameter of that name.
func (e Element) unknownParam(key string) string {
	known := make([]string, len(e.Params))
	for i, p := range e.Params {
		known[i] = p.Name
	}
	return fmt.Sprintf("%q: unknown parameter %s%s; %s", e.Name, bounded(key, 40), typo.Hint(key, known), e.paramList())
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
