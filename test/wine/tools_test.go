package wine

import (
	"path/filepath"
	"strings"
	"testing"

	"nbd.example/nbd/block"
	"nbd.example/nbd/test/harness"
)

// TestLogs has a server log transactions, and prints and plays the log by nbd.
func TestLogs(t *testing.T) {
	s := windows(t)
	tool, err := s.build("nbd.exe", "build", module+"/cmd/nbd")
	must(t, err)
	dir := harness.Dir(t)
	log, copied := filepath.Join(dir, "log"), harness.Image(t, dir, "copy", harness.Random(9, 4*mib))
	file, export := disk(t, 9, 4*mib)
	c := start(t, export+"transactionlog = "+quoted(path(log))+"\ndatalog = true\n")
	d := device(t, c.uri("disk"))
	want := harness.Random(9, 4*mib)
	for i := range int64(20) {
		data := harness.Random(uint64(i), 5000)
		must(t, d.WriteAt(t.Context(), data, i*100_000, block.FUA))
		copy(want[i*100_000:], data)
	}
	must(t, d.WriteZeroes(t.Context(), 3000, 1<<20, 0))
	clear(want[3000 : 3000+1<<20])
	must(t, d.Close())
	c.end(t)
	harness.Same(t, file, want)

	nbd := func(args ...string) string {
		t.Helper()
		out, err := s.command(tool, args...).CombinedOutput()
		if err != nil {
			t.Fatalf("nbd %q: %v\n%s", args, err, out)
		}
		return string(out)
	}
	if out := nbd("trdump", path(log)); strings.Count(out, "NBD_CMD_WRITE+") != 20 || strings.Contains(out, "UNKNOWN") {
		t.Errorf("the log holds\n%s", out)
	}
	if out := nbd("trplay", path(log), path(copied)); !strings.Contains(out, "21 changes") {
		t.Errorf("trplay says %q", out)
	}
	harness.Same(t, copied, want)
}
