package serverflags

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"nbd.example/nbd/internal/typo"
)

// Parse reads a command line without the program's name. The error holds all
// that is wrong with it, one a line; the Flags hold what could be understood.
func Parse(args []string) (*Flags, error) {
	p := parser{flags: &Flags{}, rest: args}
	for len(p.rest) > 0 {
		word := p.rest[0]
		p.rest = p.rest[1:]
		switch {
		case word == "--":
			p.operands = append(p.operands, p.rest...)
			p.rest = nil
		case strings.HasPrefix(word, "--"):
			p.long(word, word[2:])
		case len(word) > 1 && word[0] == '-':
			p.short(word)
		default:
			p.operands = append(p.operands, word)
		}
	}
	p.place()
	return p.flags, errors.Join(p.errs...)
}

type parser struct {
	flags    *Flags
	rest     []string
	operands []string
	errs     []error
}

func (p *parser) fail(format string, a ...any) { p.errs = append(p.errs, fmt.Errorf(format, a...)) }

// long takes an option that was written as word, with the text behind its dashes.
func (p *parser) long(word, text string) {
	name, value, has := strings.Cut(text, "=")
	o, err := findLong(name)
	if err != nil {
		p.fail("%s: %w", typo.Quote(word), err)
		return
	}
	p.take(*o, "--"+o.Long, value, has)
}

// short takes a word of single letters, or a long option with one dash.
func (p *parser) short(word string) {
	name, _, _ := strings.Cut(word[1:], "=")
	for _, o := range options {
		if len(name) > 1 && (o.Long == name || o.Also == name) {
			p.long(word, word[1:])
			return
		}
	}
	for i := 1; i < len(word); i++ {
		k := slices.IndexFunc(options, func(o Option) bool { return o.Short == word[i] && word[i] != 0 })
		switch {
		case k < 0 && i == 1:
			p.fail("unknown option %s%s", typo.Quote(word), hint(word))
			return
		case k < 0:
			p.fail("unknown option %s in %s%s", typo.Quote("-"+word[i:i+1]), typo.Quote(word), hint(word))
			return
		case options[k].Arg == "":
			p.take(options[k], word[:1]+word[i:i+1], "", false)
		default:
			p.take(options[k], "-"+word[i:i+1], word[i+1:], i+1 < len(word))
			return
		}
	}
}

// findLong finds a long option by its name, or by a beginning that only it has.
func findLong(name string) (*Option, error) {
	var found *Option
	for i, o := range options {
		switch {
		case o.Long == name || o.Also == name && name != "":
			return &options[i], nil
		case name != "" && strings.HasPrefix(o.Long, name):
			if found != nil {
				return nil, fmt.Errorf("could be --%s or --%s", found.Long, o.Long)
			}
			found = &options[i]
		}
	}
	if found == nil {
		return nil, fmt.Errorf("unknown option%s", hint(name))
	}
	return found, nil
}

// hint returns "; did you mean …?", or where to look.
func hint(word string) string {
	name, _, _ := strings.Cut(strings.TrimLeft(word, "-"), "=")
	var names []string
	for _, o := range options {
		names = append(names, o.Long)
	}
	if best := typo.Nearest(name, names); best != "" {
		return "; did you mean --" + best + "?"
	}
	return "; --help lists all"
}

// take stores an option. Its argument is value if has is set, else the next word.
func (p *parser) take(o Option, name, value string, has bool) {
	optional := strings.HasPrefix(o.Arg, "[")
	switch {
	case o.Arg == "" && has:
		p.fail("option %s takes no argument, but got %s", name, typo.Quote(value))
		return
	case o.Arg == "":
		*o.field(p.flags).(*bool) = true
		return
	case !has && optional:
		value = o.words[0]
	case !has && len(p.rest) == 0:
		p.fail("option %s needs its argument %s", name, o.Arg)
		return
	case !has:
		value, p.rest = p.rest[0], p.rest[1:]
	}
	if o.words != nil && !slices.Contains(o.words, value) {
		p.fail("option %s: %s is not one of %s", name, typo.Quote(value), strings.Join(o.words, ", "))
		return
	}
	switch f := o.field(p.flags).(type) {
	case *string:
		if value == "" {
			p.fail("option %s: its argument is empty", name)
		}
		*f = value
	case *[]string:
		if value == "" {
			p.fail("option %s: its argument is empty", name)
		}
		*f = append(*f, value)
	case *int:
		n, err := strconv.ParseInt(value, 10, 32)
		if err != nil || n < 0 {
			p.fail("option %s: %s is not a number", name, typo.Quote(value))
		}
		*f = int(n)
	}
}

// place gives the operands their meaning.
func (p *parser) place() {
	if len(p.operands) > 3 {
		p.fail("%s is one operand too many; the operands are [address@]port file [size]", typo.Quote(p.operands[3]))
	}
	for i, word := range p.operands[:min(3, len(p.operands))] {
		switch i {
		case 0:
			if isAddress(word) {
				p.flags.Address = word
				continue
			}
			l, err := parseListen(word)
			if err != nil {
				p.fail("%w", err)
				continue
			}
			p.flags.Listen = &l
			if n, err := strconv.Atoi(l.Port); err == nil && n == 0 {
				p.flags.Listen, p.flags.Inetd = nil, true
			}
		case 1:
			if word == "" {
				p.fail("the file to serve is an empty word")
			}
			p.flags.File = word
		case 2:
			n, err := parseSize(word)
			if err != nil {
				p.fail("%w", err)
			}
			p.flags.Size = n
		}
	}
}

// isAddress tells an address of another kind from [address@]port. The names of its
// kinds were never those of hosts: the old form with a colon is for IPv4 addresses.
func isAddress(word string) bool {
	return strings.HasPrefix(word, "unix:") || strings.HasPrefix(word, "vsock:") || strings.HasPrefix(word, "tcp:")
}

// parseListen reads [address@]port, or the old form IPv4:port.
func parseListen(word string) (Listen, error) {
	host, port, at := cutLast(word, "@")
	if !at {
		host, port, at = cutLast(word, ":")
		if at && strings.Contains(host, ":") && !strings.HasPrefix(host, "[") {
			return Listen{}, fmt.Errorf("%s could be an IPv6 address with or without a port; write %s", typo.Quote(word), typo.Quote(host+"@"+port))
		}
	}
	if !at {
		host, port = "", word
	}
	if h, ok := strings.CutPrefix(host, "["); ok {
		h, closed := strings.CutSuffix(h, "]")
		if a, err := netip.ParseAddr(h); err != nil || !closed || !a.Is6() {
			return Listen{}, fmt.Errorf("%s in %s is not an IPv6 address in brackets", typo.Quote(host), typo.Quote(word))
		}
		host = h
	}
	if err := checkPort(port); err != nil {
		return Listen{}, fmt.Errorf("first operand %s: %w", typo.Quote(word), err)
	}
	return Listen{Host: host, Port: port}, nil
}

// checkPort accepts numbers and what looks like the name of a service.
func checkPort(port string) error {
	if n, err := strconv.ParseUint(port, 10, 64); err == nil || errors.Is(err, strconv.ErrRange) {
		if n > math.MaxUint16 {
			return fmt.Errorf("port %s is above 65535", port)
		}
		return nil
	}
	letter := false
	for _, c := range []byte(port) {
		isLetter := c|0x20 >= 'a' && c|0x20 <= 'z'
		if !isLetter && (c < '0' || c > '9') && c != '-' && c != '_' {
			letter = false
			break
		}
		letter = letter || isLetter
	}
	if !letter {
		return fmt.Errorf("%s is neither a port number nor the name of a service; the first operand is [address@]port, and a file stands behind it, as in \"nbd-server 10809 /srv/disk.img\"", typo.Quote(port))
	}
	return nil
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return "", s, false
}

// parseSize reads a number of bytes with an optional unit.
func parseSize(word string) (int64, error) {
	digits := strings.TrimRight(word, "kKmMgGtT")
	unit := int64(1)
	switch word[len(digits):] {
	case "":
	case "k", "K":
		unit = 1 << 10
	case "m", "M":
		unit = 1 << 20
	case "g", "G":
		unit = 1 << 30
	case "t", "T":
		unit = 1 << 40
	default:
		unit = 0
	}
	n, err := strconv.ParseInt(digits, 10, 64)
	switch {
	case errors.Is(err, strconv.ErrRange), err == nil && unit > 0 && n > math.MaxInt64/unit:
		return 0, fmt.Errorf("size %s is too large", typo.Quote(word))
	case err != nil, unit == 0, n < 0:
		return 0, fmt.Errorf("size %s is not a number of bytes with one of k, M, G, T behind it", typo.Quote(word))
	case n == 0:
		return 0, nil // the reference takes 0 as "the size of the file"
	}
	return n * unit, nil
}
