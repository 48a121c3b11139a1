package wine

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"nbd.example/nbd/internal/testgate"
)

func TestMain(m *testing.M) { os.Exit(runTests(m)) }

// packages are those whose tests run here: those that touch the system. Tests are
// left out by patterns of "go test -run" and "go test -skip", with the reason. The tests of handshake, transmission and client
// are not here: nearly all of them have unix sockets between their two ends, which
// wine 8 has not. Those of server drive the three over TCP.
var packages = []struct {
	path string
	only string
	skip string
	why  string
}{
	{path: "backend/file"},
	{path: "backend/multi"},
	{path: "backend/tree", skip: "TestConformance/(OneLevel|FewOpen)|TestManyOpen", why: "the others open and close files by the thousand, which takes wine two minutes"},
	{path: "block/blocktest"},
	{path: "chain", skip: "TestSpecChanges", why: "it knows absolute paths by a slash in front"},
	{path: "chain/core"},
	{path: "cmd/nbd-server", only: "TestParseService|TestAsService", why: "the others are about paths and signals of Unix"},
	{path: "internal/fileid"},
	{path: "internal/hooks"},
	{path: "internal/nbdconf", skip: "TestLoad", why: "it compares messages with names of files in them, which have slashes"},
	{path: "internal/opener"},
	{path: "internal/serverflags"},
	{path: "internal/trlog"},
	{path: "internal/winsvc"},
	{path: "layer/cow", skip: "TestFull", why: "wine shows a /dev/full that cannot be linked to"},
	{path: "layer/partition"},
	{path: "layer/wait"},
	{path: "server"},
}

// TestPackages runs the tests of packages as a Windows would.
func TestPackages(t *testing.T) {
	s := windows(t)
	disk := filepath.Join(s.dir, "scratch")
	must(t, os.WriteFile(disk, nil, 0o644))
	must(t, os.Truncate(disk, 8<<20))
	must(t, s.drive('r', disk))
	for _, p := range packages {
		t.Run(strings.ReplaceAll(p.path, "/", "_"), func(t *testing.T) {
			file, dir, err := s.buildTests(p.path)
			must(t, err)
			if p.why != "" {
				t.Logf("not all tests: %s", p.why)
			}
			c := s.command(path(file), "-test.v", "-test.short", "-test.timeout=7m", "-test.run="+p.only, "-test.skip="+p.skip)
			c.Dir = dir
			c.Env = append(c.Env, `NBD_TEST_RAW_DISK=\\.\R:`, testgate.MustRun+"=", testgate.Run+"=")
			out, err := c.CombinedOutput()
			if passed := strings.Count(string(out), "\n--- PASS: "); err != nil || passed == 0 {
				t.Fatalf("%d tests passed, %v\n%s", passed, err, failures(string(out)))
			}
			must(t, os.Remove(file))
		})
	}
}

// failures leaves the lines about tests that passed away.
func failures(out string) string {
	var b strings.Builder
	for line := range strings.Lines(out) {
		if !strings.HasPrefix(line, "=== ") && !strings.Contains(line, "--- PASS: ") && !strings.Contains(line, "--- SKIP: ") && !strings.Contains(line, "BLOCKTEST_SEED") {
			b.WriteString(line)
		}
	}
	const most = 20000
	return b.String()[:min(b.Len(), most)]
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
