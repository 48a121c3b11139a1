package fault

import (
	"fmt"
	"math"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"syscall"
)

// Rule says which operations fail, and how. Its zero value means no operation.
type Rule struct {
	Kinds Kind
	// The range in bytes; a Len of 0 means to the end. A range that an operation
	// only partly touches counts as touched.
	Off, Len int64
	// First and Last bound the count, from 1, of the operations that the rule
	// fires for. A First of 0 means 1; a Last of 0 means that there is no end.
	First, Last int64
	// Percent is how likely the rule fires for an operation that everything else
	// agrees to, from 0 to 100; 0 means 100.
	Percent float64

	// Err is what the operation fails with.
	Err error
	// Part is how many bytes of the operation are done before it fails.
	Part int64
	// Panic makes the operation panic instead.
	Panic bool
}

// check tells what is wrong with r.
func (r Rule) check() error {
	switch {
	case r.Kinds&^All != 0:
		return fmt.Errorf("unknown kinds %#x", uint8(r.Kinds&^All))
	case r.Off < 0 || r.Len < 0 || r.Len > math.MaxInt64-r.Off:
		return fmt.Errorf("range of %d bytes at %d is out of bounds", r.Len, r.Off)
	case r.First < 0 || r.Last < 0 || r.Last != 0 && r.Last < r.First:
		return fmt.Errorf("counts from %d to %d make no sense", r.First, r.Last)
	case !(r.Percent >= 0 && r.Percent <= 100): // not a number is neither
		return fmt.Errorf("likelihood of %v percent is not between 0 and 100", r.Percent)
	case r.Part < 0:
		return fmt.Errorf("part of %d bytes must not be negative", r.Part)
	case r.Kinds != 0 && r.Err == nil && !r.Panic:
		return fmt.Errorf("neither an error nor a panic")
	}
	return nil
}

// touches reports whether r means an operation of kind k on n bytes at off.
func (r Rule) touches(k Kind, off, n int64) bool {
	if r.Kinds&k == 0 {
		return false
	}
	return k == Flush || off+n > r.Off && (r.Len == 0 || off < r.Off+r.Len)
}

// String returns the text form.
func (r Rule) String() string {
	var b strings.Builder
	b.WriteString(r.Kinds.String())
	if r.Off != 0 || r.Len != 0 {
		fmt.Fprintf(&b, "@%d", r.Off)
		if r.Len != 0 {
			fmt.Fprintf(&b, "+%d", r.Len)
		}
	}
	switch first := max(r.First, 1); {
	case r.Last == first:
		fmt.Fprintf(&b, ":%d", first)
	case r.Last != 0:
		fmt.Fprintf(&b, ":%d-%d", first, r.Last)
	case first != 1:
		fmt.Fprintf(&b, ":%d+", first)
	}
	if r.Percent != 0 && r.Percent != 100 {
		fmt.Fprintf(&b, ":%s%%", strconv.FormatFloat(r.Percent, 'g', -1, 64))
	}
	b.WriteByte('=')
	switch {
	case r.Panic:
		b.WriteString("panic")
	default:
		b.WriteString(errorName(r.Err))
		if r.Part != 0 {
			fmt.Fprintf(&b, "/%d", r.Part)
		}
	}
	return b.String()
}

// Script is a list of rules. The zero value has none. Its methods may be
// called concurrently, also while operations are under way.
type Script struct {
	// Seed makes what is left to chance repeatable. It must be set before the
	// script is used.
	Seed uint64

	mu     sync.Mutex
	rules  []*counted
	random *rand.Rand
	fired  int64
}

// counted is a rule with its count.
type counted struct {
	Rule
	count int64
}

// New returns a script with the rules of text.
func New(text string) (*Script, error) {
	s := &Script{}
	return s, s.Set(text)
}

// Set replaces all rules by those of text. All counts begin anew. If text
// is wrong nothing changes.
func (s *Script) Set(text string) error {
	rules, err := Parse(text)
	if err != nil {
		return err
	}
	return s.SetRules(rules...)
}

// SetRules replaces all rules. All counts begin anew. If one makes no sense
// nothing changes. Without arguments it removes all.
func (s *Script) SetRules(rules ...Rule) error {
	list := make([]*counted, len(rules))
	for i, r := range rules {
		if err := r.check(); err != nil {
			return fmt.Errorf("fault: rule %d: %w", i+1, err)
		}
		list[i] = &counted{Rule: r}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rules = list
	return nil
}

// Add appends rules. Those that are there keep their counts.
func (s *Script) Add(rules ...Rule) error {
	for i, r := range rules {
		if err := r.check(); err != nil {
			return fmt.Errorf("fault: rule %d: %w", i+1, err)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range rules {
		s.rules = append(s.rules, &counted{Rule: r})
	}
	return nil
}

// Rules returns the rules.
func (s *Script) Rules() []Rule {
	s.mu.Lock()
	defer s.mu.Unlock()
	rules := make([]Rule, len(s.rules))
	for i, r := range s.rules {
		rules[i] = r.Rule
	}
	return rules
}

// Fired returns how often a rule has fired, removed ones included.
func (s *Script) Fired() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.fired
}

// fire counts an operation, and returns the rule that fires for it. Rules after
// that one do not count it.
func (s *Script) fire(k Kind, off, n int64) (Rule, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, r := range s.rules {
		if !r.touches(k, off, n) {
			continue
		}
		r.count++
		if r.count < r.First || r.Last != 0 && r.count > r.Last || !s.lucky(r.Percent) {
			continue
		}
		s.fired++
		return r.Rule, true
	}
	return Rule{}, false
}

func (s *Script) lucky(percent float64) bool {
	if percent == 0 || percent == 100 {
		return true
	}
	if s.random == nil {
		s.random = rand.New(rand.NewPCG(s.Seed, 0))
	}
	return s.random.Float64()*100 < percent
}

// errno is an error that rules can name, with its number on Linux.
type errno struct {
	name   string
	number int
	err    error
}

var errnos = []errno{
	{"EPERM", 1, syscall.EPERM},
	{"ENOENT", 2, syscall.ENOENT},
	{"EINTR", 4, syscall.EINTR},
	{"EIO", 5, syscall.EIO},
	{"ENXIO", 6, syscall.ENXIO},
	{"EBADF", 9, syscall.EBADF},
	{"EAGAIN", 11, syscall.EAGAIN},
	{"ENOMEM", 12, syscall.ENOMEM},
	{"EACCES", 13, syscall.EACCES},
	{"EBUSY", 16, syscall.EBUSY},
	{"ENODEV", 19, syscall.ENODEV},
	{"EINVAL", 22, syscall.EINVAL},
	{"EFBIG", 27, syscall.EFBIG},
	{"ENOSPC", 28, syscall.ENOSPC},
	{"EROFS", 30, syscall.EROFS},
	{"EOVERFLOW", 75, syscall.EOVERFLOW},
	{"ENOTSUP", 95, syscall.ENOTSUP},
	{"ESHUTDOWN", 108, syscall.ESHUTDOWN},
	{"ETIMEDOUT", 110, syscall.ETIMEDOUT},
	{"EDQUOT", 122, syscall.EDQUOT},
}

// errorName returns the name of err in rules. An error that rules cannot name
// has its own text, which rules cannot be read back from.
func errorName(err error) string {
	for _, e := range errnos {
		if err == e.err {
			return e.name
		}
	}
	if err == nil {
		return "?"
	}
	return strconv.Quote(err.Error())
}
