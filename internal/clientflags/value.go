package clientflags

import (
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"nbd.example/nbd/internal/typo"
)

// A setter stores the value of an option. It looks at nothing but the value.
type setter func(f *Flags, value string) error

func boolean(field func(*Flags) *bool) setter {
	return func(f *Flags, _ string) error { *field(f) = true; return nil }
}

func text(field func(*Flags) *string) setter {
	return func(f *Flags, value string) error {
		if value == "" {
			return errors.New("its argument is empty")
		}
		*field(f) = value
		return nil
	}
}

// oneOf stores one of words.
func oneOf(words []string, field func(*Flags) *string) setter {
	return func(f *Flags, value string) error {
		if !slices.Contains(words, value) {
			return fmt.Errorf("%s is not one of %s", typo.Quote(value), strings.Join(words, ", "))
		}
		*field(f) = value
		return nil
	}
}

func seconds(field func(*Flags) *time.Duration) setter {
	return func(f *Flags, value string) error {
		d, err := parseDuration(value)
		*field(f) = d
		return err
	}
}

func size(field func(*Flags) *int64) setter {
	return func(f *Flags, value string) error {
		n, err := parseSize(value)
		if err == nil && n == 0 {
			err = errors.New("a size of 0 bytes")
		}
		*field(f) = n
		return err
	}
}

// act says that an option is an action. Two different ones contradict each other. Its
// argument is a device, which check accepts; nil if there is none.
func act(a Action, check func(string) error) setter {
	return func(f *Flags, value string) error {
		f.Action = a
		if check == nil {
			return nil
		}
		f.Devices = []string{value}
		return check(value)
	}
}

// anyName accepts what may be the name of a device, or of anything else.
func anyName(s string) error {
	if s == "" {
		return errors.New("its argument is empty")
	}
	return nil
}

// maxTime bounds durations: what the kernel counts in 32 bits of seconds.
const maxTime = math.MaxInt32 * time.Second

// parseDuration reads a number of seconds, as the reference has it, or a duration with
// units.
func parseDuration(s string) (time.Duration, error) {
	d, err := time.ParseDuration(s)
	if err != nil && strings.Trim(s, "0123456789.") == "" {
		d, err = time.ParseDuration(s + "s") // 0.5
	}
	if n, numErr := strconv.ParseUint(s, 10, 64); numErr == nil {
		d, err = time.Duration(min(n, math.MaxInt32+1))*time.Second, nil
	}
	switch {
	case err != nil:
		return 0, fmt.Errorf("%s is neither a number of seconds nor a duration such as 1m30s", typo.Quote(s))
	case d < 0:
		return 0, fmt.Errorf("%s is negative", typo.Quote(s))
	case d > maxTime:
		return 0, fmt.Errorf("%s is too long", typo.Quote(s))
	}
	return d, nil
}

// parseSize reads a number of bytes, decimal or as in C, with an optional unit.
func parseSize(s string) (int64, error) {
	shift := 0
	digits := s
	if s != "" && !strings.HasPrefix(s, "0x") {
		if i := strings.IndexByte("kmgtKMGT", s[len(s)-1]); i >= 0 {
			shift, digits = 10*(i%4+1), s[:len(s)-1]
		}
	}
	n, err := strconv.ParseUint(digits, 0, 63)
	switch {
	case errors.Is(err, strconv.ErrRange), err == nil && n > math.MaxInt64>>shift:
		return 0, fmt.Errorf("%s is too large", typo.Quote(s))
	case err != nil || strings.Contains(digits, "_"):
		return 0, fmt.Errorf("%s is not a number of bytes with one of k, M, G, T behind it", typo.Quote(s))
	}
	return int64(n) << shift, nil
}

func setBlockSize(f *Flags, value string) error {
	n, err := strconv.ParseUint(value, 0, 31)
	most := os.Getpagesize() // the kernel takes no more
	if err != nil || n < 512 || n > uint64(most) || n&(n-1) != 0 {
		return fmt.Errorf("%s is not 512, 1024, 2048 or another power of two up to %d, the size of this machine's memory pages", typo.Quote(value), most)
	}
	f.BlockSize = int64(n)
	return nil
}

// maxConnections bounds -connections. The kernel has a queue for each.
const maxConnections = 128

func setConnections(f *Flags, value string) error {
	n, err := strconv.ParseUint(value, 0, 31)
	if err != nil || n == 0 || n > maxConnections {
		return fmt.Errorf("%s is not a number from 1 to %d", typo.Quote(value), maxConnections)
	}
	f.Connections = int(n)
	return nil
}

func setOnFailure(f *Flags, value string) error {
	word, limit, has := strings.Cut(value, ":")
	switch {
	case word == "error" && !has:
		f.OnFailure, f.Limit = "error", 0
		return nil
	case word == "wait":
		f.OnFailure, f.Limit = "wait", 0
		if !has {
			return nil
		}
		d, err := parseDuration(limit)
		if err == nil && d == 0 {
			err = errors.New("a wait of no time is \"error\"")
		}
		f.Limit = d
		return err
	}
	return fmt.Errorf("%s is not wait, wait:LIMIT or error", typo.Quote(value))
}

func setTimeout(f *Flags, value string) error {
	d, err := parseDuration(value)
	if err == nil && d == 0 {
		d = Never
	}
	f.Timeout = d
	return err
}

// setDeadTimeout is the reference's way to say the same.
func setDeadTimeout(f *Flags, value string) error {
	d, err := parseDuration(value)
	if err != nil {
		return err
	}
	f.OnFailure, f.Limit = "wait", d
	if d == 0 {
		f.OnFailure = "error"
	}
	return nil
}

func addAddress(f *Flags, value string) error {
	if value == "" || strings.ContainsAny(value, " \t/") {
		return fmt.Errorf("%s is not a host or host:port; a server that is no such thing is named by a URI", typo.Quote(value))
	}
	f.Also = append(f.Also, value)
	return nil
}

// isNumber reports whether the reference takes a word for a port.
func isNumber(s string) bool {
	n, err := strconv.ParseUint(s, 0, 64)
	return err == nil && n != 0 || errors.Is(err, strconv.ErrRange)
}

func parsePort(s string) (string, error) {
	n, err := strconv.ParseUint(s, 0, 16)
	if err != nil || n == 0 || strings.Contains(s, "_") {
		return "", fmt.Errorf("port %s is not a number from 1 to 65535", typo.Quote(s))
	}
	return strconv.FormatUint(n, 10), nil
}

func setPort(f *Flags, value string) (err error) {
	f.Port, err = parsePort(value)
	return err
}

// IsDeviceName reports whether a word is the short or long name of a kernel device:
// nbd0, /dev/nbd0, and nb0 as in the first documentation.
func IsDeviceName(s string) bool {
	s = strings.TrimPrefix(s, "/dev/")
	for _, p := range []string{"nbd/", "nbd", "nb"} {
		if digits, ok := strings.CutPrefix(s, p); ok && digits != "" && strings.Trim(digits, "0123456789") == "" {
			return true
		}
	}
	return false
}

// checkDevice accepts names of kernel devices, and paths, which may be links to one.
func checkDevice(s string) error {
	if IsDeviceName(s) || strings.HasPrefix(s, "/") && len(s) > 1 {
		return nil
	}
	return fmt.Errorf("%s is not the name of an NBD device, which is like /dev/nbd0", typo.Quote(s))
}

// schemes are those of NBD's URIs.
var schemes = []string{"nbd", "nbds", "nbd+unix", "nbds+unix", "nbd+vsock", "nbds+vsock"}

// IsURI reports whether a word begins with one of the schemes of NBD.
func IsURI(s string) bool {
	scheme, _, found := strings.Cut(s, ":")
	return found && slices.Contains(schemes, strings.ToLower(scheme))
}
