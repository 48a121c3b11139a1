package main

import (
	"bufio"
	"fmt"
	"io"
	"path"
	"strings"
)

// rule is one line of the -must file.
type rule struct {
	pkg     string // path below the module
	pattern string // of path.Match, for the test's name
}

// parseRules reads a -must file.
func parseRules(in io.Reader) ([]rule, error) {
	var rules []rule
	sc := bufio.NewScanner(in)
	for n := 1; sc.Scan(); n++ {
		line := strings.TrimSpace(sc.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		words := strings.Fields(line)
		if len(words) < 2 || strings.HasSuffix(words[1], "/") != (len(words) > 2) {
			return nil, fmt.Errorf("line %d: want a package and a test, or a package, a test with / behind it, and subtests; not %q", n, line)
		}
		names := words[2:]
		if len(names) == 0 {
			names = []string{""}
		}
		for _, name := range names {
			pattern := words[1] + name
			if _, err := path.Match(pattern, ""); err != nil {
				return nil, fmt.Errorf("line %d: %q: %w", n, pattern, err)
			}
			rules = append(rules, rule{words[0], pattern})
		}
	}
	return rules, sc.Err()
}

// unfulfilled says which rules are not fulfilled, and why.
func (r *testRun) unfulfilled(rules []rule, only string) []string {
	var problems []string
	for _, want := range rules {
		if only != "" && want.pkg != only && !strings.HasPrefix(want.pkg, only+"/") {
			continue
		}
		passed := false
		for id, result := range r.result {
			if !want.matches(id) {
				continue
			}
			passed = passed || result == "pass"
			if result == "skip" {
				problems = append(problems, fmt.Sprintf("%s %s was skipped: %s", want.pkg, id.name, r.reason[id]))
			}
		}
		if !passed {
			problems = append(problems, fmt.Sprintf("%s %s: no such test passed", want.pkg, want.pattern))
		}
	}
	return problems
}

// matches reports whether the rule is about the test. A package's path is compared
// from its end, so that the list need not repeat the module.
func (r rule) matches(id testID) bool {
	if id.pkg != r.pkg && !strings.HasSuffix(id.pkg, "/"+r.pkg) {
		return false
	}
	ok, err := path.Match(r.pattern, id.name)
	return ok && err == nil
}
