// Package testgate says what a test needs from the machine it runs on, and skips it
// where that is missing.
//
// A test that needs more than Go begins with a call of [Requires]:
//
//	func TestCopy(t *testing.T) {
//		testgate.Requires(t, testgate.Program("nbdcopy"), testgate.Root())
//		…
//	}
//
// On a machine without nbdcopy it is skipped, and says why. A skip is a hole that
// nobody sees, so a machine that is meant to run everything says so in the
// environment: NBD_TEST_MUST_RUN=peers,root makes each skip for a missing program,
// or for want of root's rights, a failure. The words are those of the needs below:
// peers, root, linux, fuse, loop, files, vm for virtual machines, and wine for
// programs that were built for Windows; "all" stands for them all.
//
// [DiskDir], [MemoryDir] and [Mounted] are folders on file systems that a test needs.
// They are made where the machine has none, if the test may do that.
//
// Tests that take long wait to be asked: [Asked]("soak") skips unless NBD_TEST_RUN
// names soak. That skip is never a failure.
//
// The program in internal/testgate/report reads what "go test -json" prints, shows
// it, lists what was skipped, and checks a list of tests that must have run.
package testgate

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
)

// Variables of the environment.
const (
	// MustRun names the kinds of needs whose lack is a failure, by commas.
	MustRun = "NBD_TEST_MUST_RUN"
	// Run names the long tests that are wanted, by commas.
	Run = "NBD_TEST_RUN"
)

// A Need is something that a machine has or lacks. Make one with the functions of
// this package.
type Need struct {
	kind    string        // the word in MustRun; empty if the lack is never a failure
	missing func() string // what is missing, or ""
}

// Requires skips the test at the first need that is not met, or fails it if
// MustRun names that kind of need.
func Requires(t testing.TB, needs ...Need) {
	t.Helper()
	skip, reason := judge(needs, os.Getenv(MustRun))
	switch {
	case reason == "":
	case skip:
		t.Skip(reason)
	default:
		t.Fatalf("must run here (%s=%s), but %s", MustRun, os.Getenv(MustRun), reason)
	}
}

// judge returns the reason not to run, empty if there is none, and whether it is one
// for a skip. mustRun is the value of MustRun.
func judge(needs []Need, mustRun string) (skip bool, reason string) {
	for _, n := range needs {
		if reason := n.missing(); reason != "" {
			return n.kind == "" || !named(mustRun, n.kind), reason
		}
	}
	return false, ""
}

// named reports whether list, words with commas between them, has word or "all".
func named(list, word string) bool {
	words := strings.Split(list, ",")
	for i := range words {
		words[i] = strings.TrimSpace(words[i])
	}
	return slices.Contains(words, word) || slices.Contains(words, "all")
}

// Program needs every one of the programs to be in the search path, or in one of
// the folders of system programs. Its kind is "peers".
func Program(names ...string) Need {
	return Need{"peers", func() string {
		for _, n := range names {
			if Find(n) == "" {
				return "needs the program " + n
			}
		}
		return ""
	}}
}

// Find returns the path of a program, or "" if there is none. Unlike
// [exec.LookPath] it knows /usr/sbin, which a user's search path often lacks.
func Find(name string) string {
	if p, err := exec.LookPath(name); err == nil {
		return p
	}
	for _, dir := range []string{"/usr/sbin", "/sbin", "/usr/local/sbin"} {
		if p, err := exec.LookPath(filepath.Join(dir, name)); err == nil {
			return p
		}
	}
	return ""
}

// Output needs a program that, run with args, prints want: a version, or a feature
// that not every build has. Its kind is "peers".
func Output(want, name string, args ...string) Need {
	return Need{"peers", func() string {
		path := Find(name)
		if path == "" {
			return "needs the program " + name
		}
		out, err := exec.Command(path, args...).CombinedOutput()
		if !strings.Contains(string(out), want) {
			return fmt.Sprintf("needs %q from %s %s (%v)", want, name, strings.Join(args, " "), err)
		}
		return ""
	}}
}

// Root needs the rights of root. Its kind is "root".
func Root() Need {
	return Need{"root", func() string {
		if os.Geteuid() != 0 {
			return "needs to run as root"
		}
		return ""
	}}
}

// Linux needs Linux. Its kind is "linux".
func Linux() Need {
	return Need{"linux", func() string {
		if runtime.GOOS != "linux" {
			return "needs Linux, this is " + runtime.GOOS
		}
		return ""
	}}
}

// Fuse needs file systems in user space: the device and its helper. Its kind is
// "fuse".
func Fuse() Need {
	return Need{"fuse", func() string {
		f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
		if err != nil {
			return "needs FUSE: " + err.Error()
		}
		f.Close()
		if Find("fusermount3") == "" {
			return "needs the program fusermount3"
		}
		return ""
	}}
}

// Loop needs loop devices: disks that are made of files. Its kind is "loop".
func Loop() Need {
	return Need{"loop", func() string {
		f, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
		if err != nil {
			return "needs loop devices: " + err.Error()
		}
		f.Close()
		return ""
	}}
}

// Files needs to be allowed n open files at once. Its kind is "files".
func Files(n uint64) Need {
	return Need{"files", func() string {
		if have := maxFiles(); have < n {
			return fmt.Sprintf("needs %d open files, allowed are %d", n, have)
		}
		return ""
	}}
}

// Own is a need of a caller's own. Missing tells what is missing, or "". The kind is a
// word for MustRun.
func Own(kind string, missing func() string) Need { return Need{kind, missing} }

// AskedOrMust needs NBD_TEST_RUN or NBD_TEST_MUST_RUN to name word, or to be "all":
// for tests that fetch much, or take long, before they are able to run.
func AskedOrMust(word string) Need {
	return Need{"", func() string {
		if !Wanted(word) && !named(os.Getenv(MustRun), word) {
			return fmt.Sprintf("runs only with %s=%s", Run, word)
		}
		return ""
	}}
}

// Wanted reports whether NBD_TEST_RUN names word, or is "all": for tests that choose
// what they do by it.
func Wanted(word string) bool { return named(os.Getenv(Run), word) }

// Asked needs NBD_TEST_RUN to name word, or to be "all". Leaving such a test out is
// never a failure.
func Asked(word string) Need {
	return Need{"", func() string {
		if !Wanted(word) {
			return fmt.Sprintf("runs only with %s=%s", Run, word)
		}
		return ""
	}}
}
