package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"time"
)

func main() {
	must := flag.String("must", "", "a `file` with the tests that must have run")
	only := flag.String("only", "", "check -must only for packages at or below this `path`")
	quiet := flag.Bool("quiet", false, "print only what is wrong with -must, and the numbers")
	flag.Parse()
	if err := run(os.Stdin, os.Stdout, options{*must, *only, *quiet}); err != nil {
		fmt.Fprintln(os.Stderr, "report:", err)
		os.Exit(1)
	}
}

// options are the flags, as doc.go tells.
type options struct {
	must, only string
	quiet      bool
}

// run reads events from in, shows them on out and judges them.
func run(in io.Reader, out io.Writer, o options) error {
	var rules []rule
	if o.must != "" {
		f, err := os.Open(o.must)
		if err != nil {
			return err
		}
		defer f.Close()
		if rules, err = parseRules(f); err != nil {
			return fmt.Errorf("%s: %w", o.must, err)
		}
	}
	r := newRun(out)
	if o.quiet {
		r.out = io.Discard
	}
	if err := r.read(in); err != nil {
		return err
	}
	r.showSkipped()
	problems := r.unfulfilled(rules, o.only)
	if o.quiet { // The words are far above by now.
		fmt.Fprint(out, strings.Join(r.failed, ""))
	}
	summary(out, problems, r.count)
	switch {
	case r.count["fail"] > 0 || r.broken > 0:
		return errors.New("tests failed")
	case len(problems) > 0:
		return errors.New("tests that must run did not")
	case r.count["pass"] == 0:
		return errors.New("no test ran")
	}
	return nil
}

// event is one line of "go test -json"; see "go doc test2json".
type event struct {
	Action     string
	Package    string
	ImportPath string // of build events
	Test       string
	Output     string
	Elapsed    float64 // seconds
}

// testID names a test.
type testID struct{ pkg, name string }

// testRun is what is known of the tests so far.
type testRun struct {
	out     io.Writer
	started time.Time
	output  map[testID]*strings.Builder // of tests that have not ended
	result  map[testID]string           // pass, fail or skip
	reason  map[testID]string           // of skipped tests
	skipped []testID                    // in order
	count   map[string]int              // by result
	parent  map[testID]bool             // has subtests
	broken  int                         // packages that failed, also without a failed test
	failed  []string                    // of each failed test its name and what it complained of
}

func newRun(out io.Writer) *testRun {
	return &testRun{
		out: out, started: time.Now(),
		output: map[testID]*strings.Builder{}, result: map[testID]string{},
		reason: map[testID]string{}, count: map[string]int{}, parent: map[testID]bool{},
	}
}

// read takes events until the end of in. Lines that are no events are shown: the
// tools print some of their errors that way.
func (r *testRun) read(in io.Reader) error {
	br := bufio.NewReader(in)
	for {
		line, err := br.ReadString('\n')
		if strings.TrimSpace(line) != "" {
			var e event
			if json.Unmarshal([]byte(line), &e) != nil || e.Action == "" {
				fmt.Fprint(r.out, line)
			} else {
				r.event(e)
			}
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fmt.Errorf("read events: %w", err)
		}
	}
	if n := len(r.output); n > 0 {
		r.unfinished()
		return fmt.Errorf("the events end while %d tests are running", n)
	}
	for id, result := range r.result {
		// A test with subtests may have failed by itself.
		if !r.parent[id] || result == "fail" {
			r.count[result]++
		}
	}
	return nil
}

// event takes one event.
func (r *testRun) event(e event) {
	id := testID{e.Package, e.Test}
	switch e.Action {
	case "run":
		r.output[id] = &strings.Builder{}
		if i := strings.LastIndex(e.Test, "/"); i > 0 {
			r.parent[testID{e.Package, e.Test[:i]}] = true
		}
	case "output", "build-output":
		r.print(id, e.Output)
	case "pass", "fail", "skip":
		r.end(id, e.Action)
	}
}

// print keeps what a test says, and shows what a package says.
func (r *testRun) print(id testID, text string) {
	if id.name != "" {
		if b := r.output[id]; b != nil {
			b.WriteString(text)
		}
		return
	}
	switch t := strings.TrimSpace(text); t {
	case "PASS", "FAIL":
	default:
		if !strings.HasSuffix(t, "[no test files]") {
			fmt.Fprint(r.out, text)
		}
	}
}

// end notes the result of a test, and shows what a failed one said.
func (r *testRun) end(id testID, result string) {
	if id.name == "" {
		if result == "fail" {
			r.broken++
		}
		return
	}
	said := ""
	if b := r.output[id]; b != nil {
		said = b.String()
	}
	delete(r.output, id)
	r.result[id] = result
	switch result {
	case "fail":
		fmt.Fprint(r.out, said)
		r.failed = append(r.failed, complaint(id, said))
	case "skip":
		r.skipped = append(r.skipped, id)
		r.reason[id] = reasonOf(said)
	case "pass":
		fmt.Fprint(r.out, measured(id, said))
	}
}

// marker stands before what a test has measured, in a line of its log.
const marker = "MEASURED: "

// measured returns the lines of a test's log that have the marker, each with its name.
func measured(id testID, said string) string {
	var b strings.Builder
	for line := range strings.Lines(said) {
		if _, what, ok := strings.Cut(line, marker); ok {
			fmt.Fprintf(&b, "measured: %s: %s\n", id.name, strings.TrimSpace(what))
		}
	}
	return b.String()
}

// complaint returns a failed test's name and the lines that it logged by itself, without
// what programs and kernels said beside.
func complaint(id testID, said string) string {
	const most = 12 // lines
	var b strings.Builder
	fmt.Fprintf(&b, "failed: %s %s\n", id.pkg, id.name)
	lines := 0
	for line := range strings.Lines(said) {
		if logged.MatchString(line) && lines < most {
			b.WriteString(line)
			lines++
		}
	}
	return b.String()
}

// logged is how a line begins that a test has logged.
var logged = regexp.MustCompile(`^\s+\S+\.go:\d+: `)

// reasonOf finds the text of t.Skip in what a test printed.
func reasonOf(said string) string {
	for line := range strings.Lines(said) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "===") || strings.HasPrefix(line, "---") || line == "" {
			continue
		}
		if _, rest, ok := strings.Cut(line, ".go:"); ok {
			if _, reason, ok := strings.Cut(rest, ": "); ok {
				return reason
			}
		}
		return line
	}
	return "no reason given"
}

// unfinished shows what the tests said that never ended.
func (r *testRun) unfinished() {
	for id, b := range r.output {
		fmt.Fprintf(r.out, "--- NOT ENDED: %s %s\n%s", id.pkg, id.name, b)
	}
}

// summary is the end of the output. Its last line has a form that machines know.
func summary(out io.Writer, problems []string, count map[string]int) {
	for _, p := range problems {
		fmt.Fprintf(out, "must run: %s\n", p)
	}
	fmt.Fprintf(out, "%d passed, %d failed, %d skipped\n", count["pass"], count["fail"], count["skip"])
}

// showSkipped lists what was skipped, by reason, in the order in which the reasons
// came up.
func (r *testRun) showSkipped() {
	const most = 3 // tests to name for one reason
	var reasons []string
	tests := map[string][]testID{}
	for _, id := range r.skipped {
		reason := r.reason[id]
		if tests[reason] == nil {
			reasons = append(reasons, reason)
		}
		tests[reason] = append(tests[reason], id)
	}
	if len(reasons) > 0 {
		fmt.Fprintln(r.out, "skipped:")
	}
	for _, reason := range reasons {
		list := tests[reason]
		fmt.Fprintf(r.out, "  %s\n", reason)
		for _, id := range list[:min(len(list), most)] {
			fmt.Fprintf(r.out, "      %s %s\n", id.pkg, id.name)
		}
		if n := len(list) - most; n > 0 {
			fmt.Fprintf(r.out, "      and %d more\n", n)
		}
	}
}
