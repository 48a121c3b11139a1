package vm

import (
	"flag"
	"os"
	"slices"
	"strings"
	"testing"

	"nbd.example/nbd/internal/testgate"
	"nbd.example/nbd/test/vm/guest"
	"nbd.example/nbd/test/vm/scenarios"
)

// restWord is the word in NBD_TEST_RUN for the rest: what CI has no time for, which is long
// scenarios, and others on the kernels that they are not mainly for. With the word "vm"
// beside it, everything runs.
const restWord = "vm-long"

// choose skips a test of machines that nobody has asked for, by NBD_TEST_RUN, by
// NBD_TEST_MUST_RUN, or by a -run that names it.
func choose(t *testing.T, name string) {
	t.Helper()
	if !asked(name) && !testgate.Wanted(restWord) {
		testgate.Requires(t, testgate.AskedOrMust("vm"))
	}
}

// skipUnlessDaily skips what runs on CI when only the rest is wanted.
func skipUnlessDaily(t *testing.T) {
	t.Helper()
	if !daily() {
		t.Skipf("is not among the rest, which %s=%s means", testgate.Run, restWord)
	}
}

// daily reports whether that is to run which runs on CI.
func daily() bool { return !testgate.Wanted(restWord) || testgate.Wanted("vm") }

// asked reports whether -run names a test or a scenario.
func asked(name string) bool {
	return strings.Contains(flag.Lookup("test.run").Value.String(), name)
}

// runs reports whether a scenario is to run on a kernel.
func runs(s *guest.Scenario, series string) bool {
	if onCI(s, series) {
		return daily()
	}
	return slices.Contains(s.Series, series) && (asked(s.Name) || testgate.Wanted(restWord))
}

// onCI reports whether CI runs a scenario on a kernel.
func onCI(s *guest.Scenario, series string) bool {
	return !s.Long && slices.Contains(s.Series, series) && (s.Main == nil || slices.Contains(s.Main, series))
}

// TestChoice wants each scenario to run on CI or among the rest.
func TestChoice(t *testing.T) {
	few := guest.Scenario{Name: "never-named", Series: []string{"6.1", "6.12"}, Main: []string{"6.12"}}
	every, long := few, few
	every.Main, long.Main, long.Long = nil, nil, true
	for _, tt := range []struct{ words, every, few, long string }{
		{"", "6.1 6.12", "6.12", ""},
		{"vm", "6.1 6.12", "6.12", ""},
		{"vm-long", "", "6.1", "6.1 6.12"},
		{"vm,vm-long", "6.1 6.12", "6.1 6.12", "6.1 6.12"},
		{"all", "6.1 6.12", "6.1 6.12", "6.1 6.12"},
	} {
		t.Setenv(testgate.Run, tt.words)
		where := func(s guest.Scenario) string {
			return strings.Join(slices.DeleteFunc(slices.Clone(series), func(k string) bool { return !runs(&s, k) }), " ")
		}
		if a, b, c := where(every), where(few), where(long); a != tt.every || b != tt.few || c != tt.long {
			t.Errorf("%s=%s: runs on %q, %q if mainly for one, %q if long; want %q, %q, %q", testgate.Run, tt.words, a, b, c, tt.every, tt.few, tt.long)
		}
	}
}

// TestMustRun wants CI to notice if one of its scenarios does not run.
func TestMustRun(t *testing.T) {
	const path = "../../.ci/must-run.txt"
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	listed := map[string]bool{}
	for line := range strings.Lines(string(text)) {
		if words := strings.Fields(line); len(words) > 2 && words[0] == "test/vm" {
			for _, name := range words[2:] {
				listed[words[1]+name] = true
			}
		}
	}
	for test, table := range map[string][]guest.Scenario{"TestVM": scenarios.Table(), "TestLittleMemory": scenarios.Little()} {
		for _, s := range table {
			for _, k := range series {
				if name := test + "/" + k + "/" + s.Name; onCI(&s, k) && !listed[name] {
					t.Errorf("%s does not list %s", path, name)
				}
			}
		}
	}
}
