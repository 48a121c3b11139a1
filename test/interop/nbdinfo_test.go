package interop

import (
	"encoding/json"
	"errors"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"

	"nbd.example/nbd/internal/testgate"
	"nbd.example/nbd/proto"
	"nbd.example/nbd/test/harness"
)

// info is what nbdinfo --json says.
type info struct {
	Protocol   string
	TLS        bool
	Structured bool
	Exports    []exportInfo
}

type exportInfo struct {
	Name         string `json:"export-name"`
	Description  string
	Contexts     []string
	IsRotational bool  `json:"is_rotational"`
	IsReadOnly   bool  `json:"is_read_only"`
	CanCache     bool  `json:"can_cache"`
	CanDF        bool  `json:"can_df"`
	CanFlush     bool  `json:"can_flush"`
	CanFUA       bool  `json:"can_fua"`
	CanMultiConn bool  `json:"can_multi_conn"`
	CanTrim      bool  `json:"can_trim"`
	CanZero      bool  `json:"can_zero"`
	BlockMinimum int64 `json:"block_size_minimum"`
	BlockMaximum int64 `json:"block_size_maximum"`
	Size         int64 `json:"export-size"`
}

// nbdinfo asks about one export, or with "--list" about all.
func nbdinfo(t *testing.T, args ...string) info {
	t.Helper()
	out := harness.Run(t, "nbdinfo", append([]string{"--json"}, args...)...)
	var i info
	if err := json.Unmarshal([]byte(out), &i); err != nil {
		t.Fatalf("nbdinfo's answer: %v\n%s", err, out)
	}
	return i
}

// manyExports is a configuration with one export of each kind.
func manyExports(t *testing.T, dir string) string {
	image := func(name string) string {
		return harness.Image(t, dir, name+".img", harness.Sparse(1, 4*mib))
	}
	return section("plain", image("plain")) +
		section("readonly", image("readonly"), "readonly = true") +
		section("cow", image("cow"), "copyonwrite = true") +
		section("rotating", image("rotating"), "rotational = true") +
		section("bare", image("bare"), "flush = false", "fua = false", "trim = false") +
		section("odd", harness.Image(t, dir, "odd.img", harness.Random(2, 12345))) +
		section("mem", "memory:64M") +
		section("told", image("told"), "description = Grüße, \\s two blanks", "minblock = 4096")
}

func TestNbdinfo(t *testing.T) {
	t.Parallel()
	testgate.Requires(t, testgate.Program("nbdinfo"))
	dir := harness.Dir(t)
	s := harness.StartIn(t, dir, harness.Config{Exports: manyExports(t, dir)})
	writable := exportInfo{
		Contexts: []string{"base:allocation"},
		CanCache: true, CanDF: true, CanFlush: true, CanFUA: true, CanMultiConn: true, CanTrim: true, CanZero: true,
		BlockMinimum: 1, Size: 4 * mib,
	}
	with := func(name string, change func(*exportInfo)) exportInfo {
		e := writable
		e.Name = name
		change(&e)
		return e
	}
	for _, want := range []exportInfo{
		with("plain", func(*exportInfo) {}),
		with("readonly", func(e *exportInfo) { e.IsReadOnly, e.CanFUA, e.CanTrim, e.CanZero = true, false, false, false }),
		with("cow", func(e *exportInfo) { e.CanMultiConn = false }),
		with("rotating", func(e *exportInfo) { e.IsRotational = true }),
		with("bare", func(e *exportInfo) { e.CanFlush, e.CanFUA, e.CanTrim = false, false, false }),
		with("odd", func(e *exportInfo) { e.Size = 12345 }),
		with("mem", func(e *exportInfo) { e.Size = 64 * mib }),
		with("told", func(e *exportInfo) { e.Description, e.BlockMinimum = "Grüße,   two blanks", 4096 }),
	} {
		t.Run(want.Name, func(t *testing.T) {
			t.Parallel()
			i := nbdinfo(t, s.URI(want.Name))
			if i.Protocol != "newstyle-fixed" || i.TLS || !i.Structured || len(i.Exports) != 1 {
				t.Fatalf("nbdinfo says %+v", i)
			}
			got := i.Exports[0]
			if got.BlockMaximum < 32*mib {
				t.Errorf("maximum block size %d, want at least 32 MiB", got.BlockMaximum)
			}
			for _, c := range want.Contexts {
				if !slices.Contains(got.Contexts, c) {
					t.Errorf("contexts %q, want %q among them", got.Contexts, c)
				}
			}
			got.BlockMaximum, got.Contexts = 0, nil
			want.Contexts = nil
			if !sameInfo(got, want) {
				t.Errorf("nbdinfo says\n %+v\nwant\n %+v", got, want)
			}
		})
	}
}

// sameInfo compares what sections of the configuration decide.
func sameInfo(a, b exportInfo) bool {
	x, errX := json.Marshal(a)
	y, errY := json.Marshal(b)
	return errX == nil && errY == nil && string(x) == string(y)
}

func TestNbdinfoList(t *testing.T) {
	t.Parallel()
	testgate.Requires(t, testgate.Program("nbdinfo"))
	dir := harness.Dir(t)
	s := harness.StartIn(t, dir, harness.Config{Exports: manyExports(t, dir)})
	var names []string
	for _, e := range nbdinfo(t, "--list", s.URI("")).Exports {
		names = append(names, e.Name)
	}
	slices.Sort(names)
	want := []string{"bare", "cow", "mem", "odd", "plain", "readonly", "rotating", "told"}
	if !slices.Equal(names, want) {
		t.Errorf("exports %q, want %q", names, want)
	}

	s2 := harness.Start(t, harness.Config{Generic: "allowlist = false", Exports: section("mem", "memory:1M")})
	said := harness.Refused(t, "nbdinfo", "--list", s2.URI(""))
	if !strings.Contains(said, "list") {
		t.Errorf("nbdinfo --list, where it is not allowed, says %q", said)
	}
}

func TestNbdinfoMap(t *testing.T) {
	t.Parallel()
	testgate.Requires(t, testgate.Program("nbdinfo"))
	d := serveDisk(t, harness.Sparse(3, 8*mib))
	type row struct{ off, length, typ int64 }
	var want []row
	for off := int64(0); off < 8*mib; off += 2 * mib {
		want = append(want, row{off, mib, 0}, row{off + mib, mib, 3})
	}
	var got []row
	for line := range strings.Lines(harness.Run(t, "nbdinfo", "--map", d.URI("disk"))) {
		var r row
		words := strings.Fields(line)
		if len(words) < 3 {
			t.Fatalf("nbdinfo --map says %q", line)
		}
		for i, p := range []*int64{&r.off, &r.length, &r.typ} {
			n, err := strconv.ParseInt(words[i], 10, 64)
			if err != nil {
				t.Fatalf("nbdinfo --map says %q: %v", line, err)
			}
			*p = n
		}
		got = append(got, r)
	}
	if !slices.Equal(got, want) {
		t.Errorf("map\n %v\nwant\n %v", got, want)
	}
}

// TestNbdinfoCan asks one question at a time: nbdinfo answers by its exit status, 0
// for yes and 2 for no.
func TestNbdinfoCan(t *testing.T) {
	t.Parallel()
	testgate.Requires(t, testgate.Program("nbdinfo"))
	dir := harness.Dir(t)
	s := harness.StartIn(t, dir, harness.Config{Exports: manyExports(t, dir)})
	for _, c := range []struct {
		export, what string
		yes          bool
	}{
		{"plain", "--can connect", true},
		{"plain", "--can read", true},
		{"plain", "--can write", true},
		{"plain", "--can structured-reply", true},
		{"plain", "--is read-only", false},
		{"readonly", "--is read-only", true},
		{"readonly", "--can write", false},
		{"readonly", "--can trim", false},
		{"rotating", "--is rotational", true},
		{"cow", "--can multi-conn", false},
		{"cow", "--can write", true},
		{"bare", "--can flush", false},
		{"mem", "--can trim", true},
	} {
		t.Run(c.export+" "+c.what, func(t *testing.T) {
			t.Parallel()
			_, errs, err := harness.Command(t, "", "nbdinfo", append(strings.Fields(c.what), s.URI(c.export))...)
			var exit *exec.ExitError
			switch {
			case err == nil && c.yes:
			case errors.As(err, &exit) && exit.ExitCode() == 2 && !c.yes:
			default:
				t.Errorf("nbdinfo: %v %s; want yes: %t", err, errs, c.yes)
			}
		})
	}
	said := harness.Refused(t, "nbdinfo", s.URI("no such export"))
	if !strings.Contains(said, "no such export") {
		t.Errorf("nbdinfo of an unknown export says %q", said)
	}
}

// TestNbdinfoDepth looks at qemu's context of allocation depth on a copyonwrite
// export, the one place where layers differ. TestNbdsh does so while the diff fills.
func TestNbdinfoDepth(t *testing.T) {
	t.Parallel()
	testgate.Requires(t, testgate.Program("nbdinfo"))
	d := serveDisk(t, harness.Sparse(4, 4*mib), "copyonwrite = true")
	if c := nbdinfo(t, d.URI("disk")).Exports[0].Contexts; !slices.Contains(c, "qemu:allocation-depth") {
		t.Fatalf("contexts %q, want qemu:allocation-depth among them", c)
	}
	out := harness.Run(t, "nbdinfo", "--map=qemu:allocation-depth", d.URI("disk"))
	const want = "0 1048576 2 backing depth 2 1048576 1048576 0 absent " + // what the image has, and its holes
		"2097152 1048576 2 backing depth 2 3145728 1048576 0 absent"
	if got := strings.Join(strings.Fields(out), " "); got != want {
		t.Errorf("depths of an image below an empty diff: %s, want %s", got, want)
	}
}

// TestInstance watches the context by which a client that comes back sees whether
// an export still holds what it left.
func TestInstance(t *testing.T) {
	t.Parallel()
	testgate.Requires(t, testgate.Program("nbdinfo"))
	dir := harness.Dir(t)
	image := harness.Image(t, dir, "image", make([]byte, mib))
	exports := section("file", image) + section("cow", image, "copyonwrite = true") + section("mem", "memory:1M")
	instances := func(s *harness.Server) map[string]string {
		m := map[string]string{}
		for _, name := range []string{"file", "cow", "mem"} {
			for _, c := range nbdinfo(t, s.URI(name)).Exports[0].Contexts {
				if strings.HasPrefix(c, proto.ContextInstance) {
					m[name] = c
				}
			}
			if m[name] == "" {
				t.Fatalf("the export %s has no context that names its instance", name)
			}
		}
		return m
	}
	s := harness.StartIn(t, dir, harness.Config{Exports: exports})
	first, again := instances(s), instances(s)
	s.Stop()
	restarted := instances(harness.StartIn(t, dir, harness.Config{Exports: exports}))
	for _, c := range []struct {
		name                string
		same, sameAfterward bool
	}{
		{"file", true, true},
		{"cow", false, false},
		{"mem", true, false},
	} {
		if got := first[c.name] == again[c.name]; got != c.same {
			t.Errorf("%s: the same instance for the next client: %t, want %t", c.name, got, c.same)
		}
		if got := first[c.name] == restarted[c.name]; got != c.sameAfterward {
			t.Errorf("%s: the same instance after a restart: %t, want %t", c.name, got, c.sameAfterward)
		}
	}
}
