package vm

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"nbd.example/nbd/internal/testgate"
	"nbd.example/nbd/test/vm/guest"
	"nbd.example/nbd/test/vm/scenarios"
)

// series are the kernels that scenarios run on.
var series = []string{"6.1", "6.12"}

// TestVM runs the scenarios, TestVM/SERIES/SCENARIO.
func TestVM(t *testing.T) {
	choose(t, "VM")
	c := contents(t)
	for _, name := range series {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			runSeries(t, name, c)
		})
	}
}

// contents builds what the machines need. The test goes on beside others.
func contents(t *testing.T) Contents {
	t.Helper()
	testgate.Requires(t, Need(scenarios.Programs()...))
	t.Parallel()
	modules, options := scenarios.Modules()
	dir := t.TempDir()
	c := Contents{
		Init: filepath.Join(dir, "init"), Server: filepath.Join(dir, "nbd-server"), Client: filepath.Join(dir, "nbd-client"),
		Programs: scenarios.Programs(), Files: scenarios.Files(),
		Applets: []string{"sh", "mount", "umount"},
		Modules: modules, OnDemand: scenarios.OnDemand(), Options: options, Network: true,
	}
	for pkg, path := range map[string]string{"test/vm/init": c.Init, "cmd/nbd-server": c.Server, "cmd/nbd-client": c.Client} {
		if err := Build(t.Context(), "nbd.example/nbd/"+pkg, path); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

// runSeries runs the scenarios of one kernel, the groups beside each other.
func runSeries(t *testing.T, name string, c Contents) {
	k, err := FetchKernel(t.Context(), name)
	if err != nil {
		t.Fatal(err)
	}
	first := NewLab(t, name, k, c)
	first.cpus = scenarios.Processors
	var groups sync.WaitGroup
	for i, group := range scenarios.Groups() {
		lab := first.another(fmt.Sprintf("%s-group%d", name, i+1))
		groups.Go(func() {
			for _, s := range group {
				if runs(&s, name) {
					t.Run(s.Name, func(t *testing.T) { runScenario(t, lab, &s, c) })
				}
			}
		})
	}
	groups.Wait()
}

// runScenario runs a scenario in the machine of a lab, or, if it needs programs that the
// others do not, in one of its own.
func runScenario(t *testing.T, lab *Lab, s *guest.Scenario, c Contents) {
	if len(s.Programs) > 0 {
		testgate.Requires(t, Need(s.Programs...))
		c.Programs = append(slices.Clip(c.Programs), s.Programs...)
		lab = NewLab(t, lab.name+"-"+s.Name, lab.kernel, c)
		lab.cpus = scenarios.Processors
	}
	var args []string
	if s.Host != nil {
		args = s.Host(t)
	}
	lab.limit = 0
	if s.Long {
		lab.limit = longLimit
	}
	lab.Run(t, s.Name, args...)
}

// TestTable holds the table of scenarios to what the rest expects of it.
func TestTable(t *testing.T) {
	names := map[string]bool{}
	for _, s := range scenarios.Table() {
		if names[s.Name] || s.Name == "" || strings.ContainsAny(s.Name, " /\t\n") {
			t.Errorf("the name %q is used twice, or cannot be one", s.Name)
		}
		names[s.Name] = true
		for _, k := range s.Main {
			if !slices.Contains(s.Series, k) {
				t.Errorf("%s is mainly for kernel %s, and is not for it", s.Name, k)
			}
		}
		for _, k := range s.Series {
			if !slices.Contains(series, k) {
				t.Errorf("%s is for kernel %s, which nobody runs", s.Name, k)
			}
		}
		if s.Run == nil || len(s.Series) == 0 {
			t.Errorf("%s never runs", s.Name)
		}
	}
}

// TestVMHarness wants scenarios that do not end well to fail, whatever happens to the
// machine, and the next one to run all the same.
func TestVMHarness(t *testing.T) {
	choose(t, "VM")
	skipUnlessDaily(t)
	c := contents(t)
	k, err := FetchKernel(t.Context(), series[0])
	if err != nil {
		t.Fatal(err)
	}
	lab := NewLab(t, "harness", k, c)
	for _, s := range scenarios.Broken() {
		name := s.Name
		lab.limit = 0
		if name == "broken-stuck" {
			lab.limit = 2 * time.Second // it never ends
		}
		r := &recorder{TB: t}
		lab.Run(r, name)
		if !r.failed || lab.machine != nil {
			t.Errorf("%s: failed %t, the machine is used again: %t; it said:\n%s", name, r.failed, lab.machine != nil, r.log.String())
		}
	}
	lab.limit = 0
	lab.Run(t, "read-only")
	if lab.machine == nil {
		t.Error("a machine is not used again after a scenario that passed")
	}
	secondStart(t, lab)
}

// secondStart wants a machine that does not come up to be started a second time.
func secondStart(t *testing.T, lab *Lab) {
	lab.discard()
	begun := lab.started
	lab.words = "rdinit=/nowhere"
	lab.boot(&healer{TB: t, heal: func() { lab.words = "" }})
	if lab.machine == nil || lab.started != begun+2 {
		t.Errorf("started %d times, want 2", lab.started-begun)
	}
}

// healer is a test that does something when it is told of something.
type healer struct {
	testing.TB
	heal func()
}

func (h *healer) Logf(f string, a ...any) {
	h.heal()
	h.TB.Logf(f, a...)
}

// recorder is a test that may fail.
type recorder struct {
	testing.TB
	failed bool
	log    strings.Builder
}

func (r *recorder) Helper()                   {}
func (r *recorder) Log(args ...any)           { fmt.Fprintln(&r.log, args...) }
func (r *recorder) Logf(f string, a ...any)   { fmt.Fprintf(&r.log, f+"\n", a...) }
func (r *recorder) Errorf(f string, a ...any) { r.failed = true; r.Logf(f, a...) }

// TestAwait wants a scenario to pass only by its own number.
func TestAwait(t *testing.T) {
	c := guest.Command{Nonce: "right", Limit: time.Minute}
	for _, tt := range []struct {
		name   string
		events []guest.Event
		pass   bool
	}{
		{"pass", []guest.Event{{Kind: guest.Log, Nonce: "right"}, {Kind: guest.Pass, Nonce: "right"}}, true},
		{"fail", []guest.Event{{Kind: guest.Fail, Nonce: "right"}}, false},
		{"of another", []guest.Event{{Kind: guest.Pass, Nonce: "wrong"}, {Kind: guest.Pass, Nonce: "right"}}, false},
		{"nobody's", []guest.Event{{Kind: guest.Pass}}, false},
		{"began again", []guest.Event{{Kind: guest.Ready}}, false},
		{"ended", nil, false},
		{"nothing known", []guest.Event{{Kind: "passed", Nonce: "right"}}, false},
	} {
		m := &machine{events: make(chan guest.Event, len(tt.events))}
		for _, e := range tt.events {
			m.events <- e
		}
		close(m.events)
		r := &recorder{TB: t}
		if pass := (&Lab{machine: m}).await(r, c); pass != tt.pass || r.failed == pass {
			t.Errorf("%s: passed %t, failed %t; want to pass: %t", tt.name, pass, r.failed, tt.pass)
		}
	}
}
