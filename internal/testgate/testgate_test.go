package testgate

import (
	"runtime"
	"testing"
)

func lack(kind, reason string) Need { return Need{kind, func() string { return reason }} }

func TestJudge(t *testing.T) {
	met := lack("root", "")
	for _, c := range []struct {
		name    string
		needs   []Need
		mustRun string
		skip    bool
		reason  string
	}{
		{"nothing needed", nil, "all", false, ""},
		{"met", []Need{met}, "all", false, ""},
		{"missing", []Need{lack("peers", "no x")}, "", true, "no x"},
		{"missing, other must", []Need{lack("peers", "no x")}, "root,fuse", true, "no x"},
		{"missing, must", []Need{lack("peers", "no x")}, "root, peers", false, "no x"},
		{"missing, all must", []Need{lack("peers", "no x")}, "all", false, "no x"},
		{"the first counts", []Need{met, lack("fuse", "no f"), lack("peers", "no x")}, "peers", true, "no f"},
		{"not asked for", []Need{lack("", "only if asked")}, "all", true, "only if asked"},
	} {
		if skip, reason := judge(c.needs, c.mustRun); reason != c.reason || skip != c.skip && reason != "" {
			t.Errorf("%s: judge = %t, %q; want %t, %q", c.name, skip, reason, c.skip, c.reason)
		}
	}
}

func TestNeeds(t *testing.T) {
	if r := Program("no-such-program-anywhere").missing(); r == "" {
		t.Error("a program that is not there is not missed")
	}
	if r := Program("go").missing(); r != "" {
		t.Skipf("the tests run without the go command: %s", r)
	}
	if r := Output("go version", "go", "version").missing(); r != "" {
		t.Errorf("go version: %s", r)
	}
	if r := Output("no such words", "go", "version").missing(); r == "" {
		t.Error("a wrong output is not missed")
	}
	if r := Linux().missing(); (r == "") != (runtime.GOOS == "linux") {
		t.Errorf("Linux on %s: %q", runtime.GOOS, r)
	}
	if r := Files(1).missing(); r != "" {
		t.Errorf("one open file: %s", r)
	}
	t.Setenv(Run, "soak,other")
	if r := Asked("soak").missing(); r != "" {
		t.Errorf("asked for, but: %s", r)
	}
	if r := Asked("flood").missing(); r == "" {
		t.Error("not asked for, but runs")
	}
}
