package chain

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"
)

const units = "kmgtpe"

// ParseSize reads a number of bytes: digits, with an optional unit. See the package
// comment.
func ParseSize(text string) (int64, error) {
	digits := strings.TrimRight(text, "kKmMgGtTpPeEiBb")
	unit := strings.ToLower(text[len(digits):])
	n, err := strconv.ParseUint(digits, 10, 63)
	if err != nil {
		return 0, fmt.Errorf("%.40q is not a size; write a number of bytes like 1048576, 1024k or 1M", text)
	}
	if unit == "" {
		return int64(n), nil
	}
	i := strings.IndexByte(units, unit[0])
	switch {
	case i < 0 || unit[1:] != "" && unit[1:] != "b" && unit[1:] != "ib":
		return 0, fmt.Errorf("%.40q is not a size: unknown unit %.20q; units are k, M, G, T, P, E", text, text[len(digits):])
	case unit[1:] == "b":
		return 0, fmt.Errorf("%.40q might mean steps of 1000 or 1024; write %s or %siB for 1024", text, text[:len(digits)+1], text[:len(digits)+1])
	}
	shift := 10 * (i + 1)
	if n > math.MaxInt64>>shift {
		return 0, fmt.Errorf("%.40q is more than a device can hold (%d bytes)", text, int64(math.MaxInt64))
	}
	return int64(n) << shift, nil
}

// FormatSize returns n bytes in the largest unit that needs no fraction, so that
// ParseSize reads it back.
func FormatSize(n int64) string {
	i := 0
	for n != 0 && n%1024 == 0 && i < len(units) {
		n /= 1024
		i++
	}
	text := strconv.FormatInt(n, 10)
	if i == 0 {
		return text
	}
	return text + strings.Replace(strings.ToUpper(units[i-1:i]), "K", "k", 1)
}

// parseBool reads a switch.
func parseBool(text string) (bool, error) {
	switch strings.ToLower(text) {
	case "true", "yes", "on", "1":
		return true, nil
	case "false", "no", "off", "0":
		return false, nil
	}
	return false, fmt.Errorf("%.40q is not a switch; write true or false", text)
}

// canonical checks a value, and returns the one way to write it.
func (k Kind) canonical(text string) (string, error) {
	switch k {
	case Path:
		if text == "" {
			return "", fmt.Errorf("the path is empty")
		}
		if strings.ContainsRune(text, 0) {
			return "", fmt.Errorf("path %.80q holds a zero byte, which no path can", text)
		}
	case Size:
		n, err := ParseSize(text)
		return FormatSize(n), err
	case Number:
		n, err := strconv.ParseUint(text, 10, 63)
		if err != nil {
			return "", fmt.Errorf("%.40q is not a whole number from 0 to %d", text, int64(math.MaxInt64))
		}
		return strconv.FormatUint(n, 10), nil
	case Bool:
		b, err := parseBool(text)
		return strconv.FormatBool(b), err
	case Duration:
		d, err := time.ParseDuration(text)
		if err != nil || d < 0 {
			return "", fmt.Errorf("%.40q is not a duration; write it like 10ms or 1.5s", text)
		}
		return d.String(), nil
	}
	return text, nil
}

// zero returns what a parameter without a default means, or "" where nothing
// means that it is absent.
func (k Kind) zero() string {
	switch k {
	case Size, Number:
		return "0"
	case Bool:
		return "false"
	case Duration:
		return "0s"
	}
	return ""
}

// Args are the checked parameters of one element. Asking for one that the element
// does not declare, or as another kind than declared, panics: that is a mistake
// in a program, not in its input.
type Args struct {
	element Element
	values  []string // for each declared parameter, canonical; "" if not given
	given   []bool   // and not the default
	seen    []bool
}

// value returns the canonical text of a parameter, or of its default.
func (a Args) value(key string, kinds ...Kind) string {
	i, ok := a.element.param(key)
	if !ok {
		panic(fmt.Sprintf("chain: element %q declares no parameter %q", a.element.Name, key))
	}
	p := a.element.Params[i]
	fits := false
	for _, k := range kinds {
		fits = fits || k == p.Kind
	}
	if !fits {
		panic(fmt.Sprintf("chain: parameter %q of element %q is a %v", key, a.element.Name, p.Kind))
	}
	switch {
	case a.given[i]:
		return a.values[i]
	case p.Default != "":
		v, _ := p.Kind.canonical(p.Default)
		return v
	}
	return p.Kind.zero()
}

// Given reports whether a parameter was given a value other than its default.
func (a Args) Given(key string) bool {
	i, ok := a.element.param(key)
	return ok && a.given[i]
}

// Text returns a Text or Path.
func (a Args) Text(key string) string { return a.value(key, Text, Path) }

// Size returns a Size in bytes.
func (a Args) Size(key string) int64 {
	n, _ := ParseSize(a.value(key, Size))
	return n
}

// Number returns a Number.
func (a Args) Number(key string) int64 {
	n, _ := strconv.ParseInt(a.value(key, Number), 10, 64)
	return n
}

// Bool returns a Bool.
func (a Args) Bool(key string) bool { return a.value(key, Bool) == "true" }

// Duration returns a Duration.
func (a Args) Duration(key string) time.Duration {
	d, _ := time.ParseDuration(a.value(key, Duration))
	return d
}
