package clientflags

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"nbd.example/nbd/internal/typo"
)

// Parse reads a command line without the program's name. The error holds all that is
// wrong with it, one a line; the Flags hold what could be understood.
func Parse(args []string) (*Flags, error) {
	p := parser{flags: &Flags{}, rest: args}
	if len(args) > 0 {
		if c := findCommand(args[0]); c != nil {
			p.flags.Action, p.command, p.rest = c.Name, c, args[1:]
		}
	}
	for len(p.rest) > 0 {
		word := p.rest[0]
		p.rest = p.rest[1:]
		switch {
		case word == "--":
			p.dashed = len(p.operands) == 0
			p.operands = append(p.operands, p.rest...)
			p.rest = nil
		case strings.HasPrefix(word, "--"):
			p.long(word, word[2:])
		case len(word) > 1 && word[0] == '-':
			p.short(word)
		default:
			p.operand(word)
		}
	}
	p.place()
	return p.flags, errors.Join(p.errs...)
}

type parser struct {
	flags    *Flags
	command  *CommandInfo // nil without one
	rest     []string
	operands []string
	dashed   bool // the first operand stands behind --
	errs     []error
}

func (p *parser) fail(format string, a ...any) { p.errs = append(p.errs, fmt.Errorf(format, a...)) }

func findCommand(word string) *CommandInfo {
	for i, c := range commands {
		if string(c.Name) == word {
			return &commands[i]
		}
	}
	return nil
}

// operand takes a word that is no option, or one in the manner of 1999.
func (p *parser) operand(word string) {
	name, value, has := strings.Cut(word, "=")
	if !has || name != "bs" && name != "timeout" {
		p.operands = append(p.operands, word)
		return
	}
	o := TabOption(name)
	p.flags.Warnings = append(p.flags.Warnings, fmt.Sprintf("%s is written in a way that is out of use; write -%s %s", typo.Quote(word), o.Long, value))
	p.take(o, "-"+o.Long, value, true)
}

// long takes an option that was written as word, with the text behind its dashes.
func (p *parser) long(word, text string) {
	name, value, has := strings.Cut(text, "=")
	o, err := findLong(name)
	if err != nil {
		p.fail("%s: %w", typo.Quote(word), err)
		return
	}
	p.take(o, "-"+o.Long, value, has)
}

// short takes a word with one dash: a long option, or else single letters. A single
// letter is never a long option cut short.
func (p *parser) short(word string) {
	if len(word) > 2 {
		name, _, _ := strings.Cut(word[1:], "=")
		_, err := findLong(name)
		if err == nil || !errors.Is(err, errUnknown) {
			p.long(word, word[1:])
			return
		}
	}
	for i := 1; i < len(word); i++ {
		o := findShort(word[i])
		switch {
		case o == nil && i == 1:
			p.fail("unknown option %s%s", typo.Quote(word), suggest(word))
			return
		case o == nil:
			p.fail("unknown option %s in %s%s", typo.Quote("-"+word[i:i+1]), typo.Quote(word), suggest(word))
			return
		case o.Arg == "":
			p.take(o, "-"+word[i:i+1], "", false)
		default:
			p.take(o, "-"+word[i:i+1], word[i+1:], i+1 < len(word))
			return
		}
	}
}

func findShort(c byte) *Option {
	i := slices.IndexFunc(options, func(o Option) bool { return c != 0 && o.Short == c })
	if i < 0 {
		return nil
	}
	return &options[i]
}

var errUnknown = errors.New("unknown option")

// findLong finds a long option by its name, or by a beginning that only it has.
// Beginnings of the reference's options come before those of others.
func findLong(name string) (*Option, error) {
	if name == "" {
		return nil, errors.New("an option without a name")
	}
	for i, o := range options {
		if o.Long == name || o.Also == name {
			return &options[i], nil
		}
	}
	for _, old := range []bool{true, false} {
		var found *Option
		for i, o := range options {
			if o.Old != old || o.Hidden || !strings.HasPrefix(o.Long, name) {
				continue
			}
			if found != nil {
				return nil, fmt.Errorf("could be -%s or -%s", found.Long, o.Long)
			}
			found = &options[i]
		}
		if found != nil {
			return found, nil
		}
	}
	return nil, fmt.Errorf("%w%s", errUnknown, suggest(name))
}

// TabOption returns the option that a key of nbdtab stands for, or nil.
func TabOption(key string) *Option {
	for _, list := range [][]Option{options, tabOnly} {
		for i, o := range list {
			if key != "" && o.Tab == key {
				return &list[i]
			}
		}
	}
	return nil
}

// take stores an option. Its argument is value if has is set, else the next word.
func (p *parser) take(o *Option, name, value string, has bool) {
	switch {
	case !o.Takes(p.action()):
		p.misplaced(o, name)
		return
	case o.Arg == "" && has:
		p.fail("option %s takes no argument, but got %s", name, typo.Quote(value))
		return
	case o.Arg != "" && !has && len(p.rest) == 0:
		p.fail("option %s needs its argument %s", name, o.Arg)
		return
	case o.Arg != "" && !has:
		value, p.rest = p.rest[0], p.rest[1:]
	}
	before := p.flags.Action
	if err := p.flags.Set(o, value); err != nil {
		p.fail("option %s: %w", name, err)
	}
	after := p.flags.Action
	switch {
	case before == Help || before == Version:
		p.flags.Action = before
	case after != before && before != Attach && after != Help && after != Version:
		p.fail("option %s: one command line does one thing, and it says already what", name)
	}
}

// action is what decides which options are allowed.
func (p *parser) action() Action {
	if p.command == nil {
		return Attach
	}
	return p.command.Name
}

func (p *parser) misplaced(o *Option, name string) {
	if p.command != nil {
		p.fail("option %s is not for the command %s", name, p.command.Name)
		return
	}
	first, _, _ := strings.Cut(o.Of, ",")
	p.fail("option %s is for the command %s, which must be the first word: nbd-client %s %s", name, first, first, name)
}

// suggest returns "; did you mean …?", or where to look.
func suggest(word string) string {
	name, _, _ := strings.Cut(strings.TrimLeft(word, "-"), "=")
	var names []string
	for _, o := range options {
		if !o.Hidden {
			names = append(names, o.Long)
		}
	}
	if best := typo.Nearest(name, names); best != "" {
		return fmt.Sprintf("; did you mean -%s?", best)
	}
	return "; --help lists all"
}
