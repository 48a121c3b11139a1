package fault

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"nbd.example/nbd/layer/ops"
)

// limits of a text.
const (
	maxText  = 1 << 16 // bytes
	maxRules = 1024
)

// SyntaxError tells what is wrong with a text of rules, and where.
type SyntaxError struct {
	Pos  int // bytes from the start of the text
	Rule string
	Msg  string
}

func (e *SyntaxError) Error() string {
	return fmt.Sprintf("fault: rule %.80q (byte %d): %s", e.Rule, e.Pos+1, e.Msg)
}

// Parse reads the text form of rules.
func Parse(text string) ([]Rule, error) {
	if len(text) > maxText {
		return nil, &SyntaxError{Rule: text, Msg: fmt.Sprintf("text has %d bytes, at most %d are read", len(text), maxText)}
	}
	var rules []Rule
	for pos := 0; pos <= len(text); {
		end := pos + strings.IndexAny(text[pos:]+";", ";,\n")
		rule := strings.TrimSpace(text[pos:end])
		if rule != "" {
			if len(rules) == maxRules {
				return nil, &SyntaxError{Pos: pos, Rule: rule, Msg: fmt.Sprintf("more than %d rules", maxRules)}
			}
			r, err := parseRule(rule)
			if err != nil {
				at := pos + strings.Index(text[pos:end], rule)
				return nil, &SyntaxError{Pos: at, Rule: rule, Msg: err.Error()}
			}
			rules = append(rules, r)
		}
		pos = end + 1
	}
	return rules, nil
}

func parseRule(text string) (Rule, error) {
	var r Rule
	what, effect, ok := strings.Cut(text, "=")
	if !ok {
		return r, fmt.Errorf("no \"=\" with what happens; write it like %q", "read@4096+512=EIO")
	}
	left := strings.Split(what, ":")
	right := strings.Split(effect, ":")
	if err := r.parseWhat(left[0]); err != nil {
		return r, err
	}
	for _, when := range append(left[1:], right[1:]...) {
		if err := r.parseWhen(when); err != nil {
			return r, err
		}
	}
	if err := r.parseEffect(right[0]); err != nil {
		return r, err
	}
	return r, r.check()
}

// parseWhat reads "read/write@4096+512".
func (r *Rule) parseWhat(text string) error {
	kinds, rng, ranged := strings.Cut(text, "@")
	for _, name := range strings.Split(kinds, "/") {
		k, err := ops.ParseKind(name)
		if err != nil {
			return err
		}
		r.Kinds |= k
	}
	if !ranged {
		return nil
	}
	off, length, bounded := strings.Cut(rng, "+")
	var err error
	if r.Off, err = parseNumber("offset", off); err != nil || !bounded {
		return err
	}
	if r.Len, err = parseNumber("length", length); err == nil && r.Len == 0 {
		return fmt.Errorf("a length of 0 touches nothing; leave it out to mean the rest")
	}
	return err
}

// parseNumber reads a number of bytes or operations; hexadecimal is fine.
func parseNumber(what, text string) (int64, error) {
	n, err := strconv.ParseUint(text, 0, 63)
	if err != nil {
		return 0, fmt.Errorf("%s %.40q is not a number from 0 to %d", what, text, int64(math.MaxInt64))
	}
	return int64(n), nil
}

// parseWhen reads one condition.
func (r *Rule) parseWhen(text string) error {
	if percent, ok := strings.CutSuffix(text, "%"); ok {
		p, err := strconv.ParseFloat(percent, 64)
		if err != nil || !(p > 0 && p <= 100) {
			return fmt.Errorf("%.40q is not a percentage above 0 and up to 100", text)
		}
		if r.Percent != 0 {
			return fmt.Errorf("two percentages")
		}
		r.Percent = p
		return nil
	}
	if r.First != 0 {
		return fmt.Errorf("two counts, the second is %.40q", text)
	}
	if text == "once" {
		r.First, r.Last = 1, 1
		return nil
	}
	first, rest := text, ""
	if i := strings.IndexAny(text, "+-"); i >= 0 {
		first, rest = text[:i], text[i:]
	}
	var err error
	if r.First, err = parseNumber("count", first); err != nil {
		return fmt.Errorf("condition %.40q: want \"once\", a count like 3, 3+ or 3-5, or a percentage like 10%%", text)
	}
	switch {
	case rest == "+":
	case rest == "":
		r.Last = r.First
	default:
		if r.Last, err = parseNumber("count", rest[1:]); err != nil {
			return err
		}
	}
	if r.First == 0 || rest != "+" && r.Last < r.First || rest != "" && rest[0] == '+' && rest != "+" {
		return fmt.Errorf("count %.40q makes no sense; operations are counted from 1", text)
	}
	return nil
}

// parseEffect reads "EIO", "EIO/512" or "panic".
func (r *Rule) parseEffect(text string) error {
	if text == "panic" {
		r.Panic = true
		return nil
	}
	name, part, torn := strings.Cut(text, "/")
	for _, e := range errnos {
		if name == e.name || name == strconv.Itoa(e.number) {
			r.Err = e.err
		}
	}
	if r.Err == nil {
		names := make([]string, len(errnos))
		for i, e := range errnos {
			names[i] = e.name
		}
		return fmt.Errorf("unknown error %.40q; known are panic, %s", name, strings.Join(names, ", "))
	}
	if !torn {
		return nil
	}
	var err error
	r.Part, err = parseNumber("part", part)
	return err
}
