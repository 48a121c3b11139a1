package nbdconf

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"nbd.example/nbd/internal/typo"
)

// set stores the entries of a group.
func (l *loader) set(g *Group, generic bool, gen *Generic, x *Export) {
	for _, e := range g.Entries {
		k, ok := find(Keys(generic), e.Key)
		switch {
		case !ok:
			l.unknown(g, e, generic)
		case g.Last(e.Key) != e:
			l.problems.add(e.Pos, Warning, "key %s in [%s] is given again at %s, which holds", typo.Quote(e.Key), g.Name, g.Last(e.Key).Pos)
		case k.Status == Ignored:
		case k.Status == NotYet:
			l.notYet(g, e, k)
		default:
			if err := store(k.field(gen, x), e.Value); err != nil {
				l.problems.add(e.At, Error, "%s in [%s]: %v", e.Key, g.Name, err)
				continue
			}
			if generic {
				gen.where[e.Key] = e.Pos
			} else {
				x.where[e.Key] = e.Pos
			}
		}
	}
}

// unknown reports a key that is not known in its section.
func (l *loader) unknown(g *Group, e *Entry, generic bool) {
	if _, ok := find(Keys(!generic), e.Key); ok {
		where := "[generic]"
		if generic {
			where = "the section of an export"
		}
		l.problems.add(e.Pos, Unknown, "key %s belongs in %s; in [%s] it has no effect", typo.Quote(e.Key), where, g.Name)
		return
	}
	l.problems.add(e.Pos, Unknown, "unknown key %s in [%s]%s", typo.Quote(e.Key), g.Name, hint(e.Key, generic))
}

// hint returns "; did you mean …?" or nothing. Keys of the section itself come first.
func hint(key string, generic bool) string {
	var names []string
	for _, k := range slices.Concat(Keys(generic), Keys(!generic)) {
		names = append(names, k.Name)
	}
	return typo.Hint(key, names)
}

// notYet refuses a key of the reference that this server does not obey yet,
// unless it asks for nothing.
func (l *loader) notYet(g *Group, e *Entry, k Key) {
	value := strings.TrimRight(e.Value, space)
	switch {
	case value == "" && k.Kind == String, value == "false", value == "0":
	case k.Kind == Bool && value != "true" && value != "1":
		l.problems.add(e.At, Error, "%s in [%s]: %v", e.Key, g.Name, notBool(value))
	default:
		l.problems.add(e.Pos, Error, "%s in [%s] is not supported yet", e.Key, g.Name)
	}
}

// store converts value to the type behind field.
func store(field any, value string) (err error) {
	trimmed := strings.TrimRight(value, space)
	switch f := field.(type) {
	case *string:
		*f, err = unescape(value)
	case *[]string:
		if value, err = unescape(value); err == nil {
			*f = splitList(value)
		}
	case *bool:
		*f, err = parseBool(trimmed)
	case *Tri:
		var b bool
		if b, err = parseBool(trimmed); err == nil {
			*f = False
			if b {
				*f = True
			}
		}
	case *int:
		var n int64
		n, err = parseInt(trimmed, 32)
		*f = int(n)
	case *int64:
		*f, err = parseInt(trimmed, 64)
	}
	return err
}

func parseBool(s string) (bool, error) {
	switch s {
	case "true", "1":
		return true, nil
	case "false", "0":
		return false, nil
	}
	return false, notBool(s)
}

func notBool(s string) error {
	return fmt.Errorf("%s is not a boolean; write true or false", typo.Quote(s))
}

func parseInt(s string, bits int) (int64, error) {
	n, err := strconv.ParseInt(s, 10, bits)
	switch {
	case errors.Is(err, strconv.ErrRange):
		return 0, fmt.Errorf("%s is too large a number", typo.Quote(s))
	case err != nil && bits == 64:
		return 0, fmt.Errorf("%s is not a number of bytes; write digits only", typo.Quote(s))
	case err != nil:
		return 0, fmt.Errorf("%s is not a number; write digits only", typo.Quote(s))
	}
	return n, nil
}

// splitHosts splits what was split at commas at white space, too, as the reference does
// with addresses.
func splitHosts(list []string) (hosts []string) {
	for _, part := range list {
		hosts = append(hosts, strings.Fields(part)...)
	}
	return hosts
}

// splitList splits at commas. Empty parts count for nothing.
func splitList(s string) []string {
	var list []string
	for part := range strings.SplitSeq(s, ",") {
		if part = strings.Trim(part, space); part != "" {
			list = append(list, part)
		}
	}
	return list
}
