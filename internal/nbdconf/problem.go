package nbdconf

import (
	"fmt"
	"slices"
	"strings"
)

// Severity says how bad a Problem is.
type Severity int

// Severities.
const (
	Warning Severity = iota // worth a look; the configuration can be used
	Unknown                 // something that has no effect, such as a key that nobody knows; the reference ignores it without a word
	Error                   // the configuration cannot be used
)

// Problem is one thing that is wrong with a configuration.
type Problem struct {
	Pos      Pos
	Severity Severity
	Text     string
}

// Error returns the form file:line: text.
func (p Problem) Error() string { return p.Pos.String() + ": " + p.Text }

// Problems holds all that was found, not only the first.
type Problems []Problem

func (l *Problems) add(pos Pos, s Severity, format string, a ...any) {
	*l = append(*l, Problem{pos, s, fmt.Sprintf(format, a...)})
}

// Errors returns those that are at least as bad as least.
func (l Problems) Errors(least Severity) Problems {
	return slices.DeleteFunc(slices.Clone(l), func(p Problem) bool { return p.Severity < least })
}

// Error joins all of them, one a line.
func (l Problems) Error() string {
	var b strings.Builder
	for i, p := range l {
		if i > 0 {
			b.WriteByte('\n')
		}
		b.WriteString(p.Error())
	}
	return b.String()
}

// Err returns l as an error if it holds one of severity Error, else nil.
func (l Problems) Err() error {
	if e := l.Errors(Error); len(e) > 0 {
		return e
	}
	return nil
}
